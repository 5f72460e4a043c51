from __future__ import annotations

from cnnstudy import source
from cnnstudy.source import closure, code_digest, essence, modules_of


def test_comments_docstrings_and_spacing_do_not_count() -> None:
    one = 'def f(x):\n    """Says a lot."""\n    # why\n    return x+1\n'
    two = "def f( x ):\n\n    return x + 1  # plus one\n"
    assert essence(one) == essence(two)


def test_code_and_indentation_count() -> None:
    assert essence("for i in a:\n    b()\n    c()\n") != essence("for i in a:\n    b()\nc()\n")
    assert essence("x = 1\n") != essence("x = 2\n")


def test_line_breaks_parentheses_and_trailing_commas_do_not_count() -> None:
    assert essence("f(a, b)\n") == essence("f(\n    a,\n    b,\n)\n")
    assert essence("x = a + b\n") == essence("x = (a\n     + b)\n")


def test_a_hash_sign_in_a_text_is_no_comment() -> None:
    assert essence('x = "#1"\n') != essence('x = "#2"\n')


def test_closure_follows_imports_and_leaves_out_other_models() -> None:
    found = closure(["cnnstudy.train"])
    assert {"cnnstudy.train", "cnnstudy.data", "cnnstudy.config"} <= set(found)
    assert not {"cnnstudy.models", "cnnstudy.models.mobile", "cnnstudy.attacks", "cnnstudy.fetch"} & set(found)


def test_modules_of_a_trial_through_its_neighbours() -> None:
    assert modules_of(_trial) == ["cnnstudy.source"]


def _trial(setup: object, seed: int) -> object:
    return _neighbour(seed)


def _neighbour(seed: int) -> object:
    return source.closure([])


def test_digest_moves_with_the_trial_and_with_a_module() -> None:
    assert code_digest("a", ["cnnstudy.config"]) != code_digest("b", ["cnnstudy.config"])
    assert code_digest("a", ["cnnstudy.config"]) != code_digest("a", ["cnnstudy.timing"])
