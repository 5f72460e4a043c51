// Filters of the verdict board. Without this script the board is a plain table of all claims.
addEventListener("DOMContentLoaded", () => {
  const board = document.querySelector(".cnn-board");
  if (!board) return;
  const rows = [...board.querySelectorAll("tr[data-outcome]")].map((row) => ({
    row,
    outcome: row.dataset.outcome,
    part: row.dataset.part,
    evidence: row.dataset.evidence.split(" ").filter(Boolean),
    text: row.textContent.toLowerCase(),
  }));
  const order = ["confirmed", "refuted", "mixed", "undecided", "untested"];
  const values = (pick) => [...new Set(rows.flatMap(pick))].filter(Boolean);
  const outcomes = order.filter((o) => rows.some((r) => r.outcome === o));
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  // the form, made of the values that the table has
  const form = element("form", { role: "search", "aria-label": "Filter the claims" });
  const boxes = element("fieldset", {}, element("legend", {}, "Verdict"));
  for (const outcome of outcomes) {
    const count = rows.filter((r) => r.outcome === outcome).length;
    const sign = element("span", { class: "cnn-badge", "data-outcome": outcome }, `${outcome} (${count})`);
    boxes.append(element("label", {}, element("input", { type: "checkbox", name: "outcome", value: outcome }), sign));
  }
  const choice = (name, label, list) => {
    const select = element("select", { name }, element("option", { value: "" }, "all"));
    for (const value of list) select.append(element("option", { value }, value));
    return element("label", {}, element("span", {}, label), select);
  };
  const search = element("label", {}, element("span", {}, "Words"), element("input", { type: "search", name: "words", autocomplete: "off" }));
  const reset = element("button", { type: "reset" }, "Show all");
  const fields = element("div", { class: "cnn-fields" });
  fields.append(choice("part", "Part", values((r) => r.part)), choice("evidence", "Evidence", values((r) => r.evidence).sort()), search, reset);
  const said = element("p", { role: "status", class: "cnn-said" });
  form.append(boxes, fields, said);
  board.querySelector(".cnn-filter").replaceWith(form);

  const apply = () => {
    const chosen = new FormData(form);
    const kept = chosen.getAll("outcome");
    const part = chosen.get("part");
    const evidence = chosen.get("evidence");
    const words = chosen.get("words").toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const r of rows) {
      const fits =
        (!kept.length || kept.includes(r.outcome)) &&
        (!part || r.part === part) &&
        (!evidence || r.evidence.includes(evidence)) &&
        words.every((word) => r.text.includes(word));
      r.row.hidden = !fits;
      shown += fits;
    }
    for (const group of board.querySelectorAll("tbody")) group.hidden = !group.querySelector("tr[data-outcome]:not([hidden])");
    said.textContent = shown === rows.length ? `All ${shown} claims are shown.` : `${shown} of ${rows.length} claims are shown.`;
    // the choice stands in the address, so that it can be kept and sent on; not from file://, where browsers refuse it
    const query = new URLSearchParams([...chosen].filter(([, value]) => value)).toString();
    try {
      history.replaceState(null, "", location.pathname + (query ? `?${query}` : "") + location.hash);
    } catch {
      // a chosen filter that cannot be kept in the address still filters
    }
  };
  for (const [key, value] of new URLSearchParams(location.search)) {
    for (const field of form.querySelectorAll(`[name="${CSS.escape(key)}"]`)) {
      if (field.type === "checkbox") field.checked ||= field.value === value;
      else field.value = value;
    }
  }
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  apply();
});
