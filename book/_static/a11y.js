// What axe finds in the theme, mended in the page.
addEventListener("load", () => {
  // the accessible name must contain the words one sees (WCAG 2.5.3)
  for (const button of document.querySelectorAll(".search-button-field")) {
    const seen = button.textContent.replace(/\s+/g, " ").trim();
    const label = button.getAttribute("aria-label");
    if (seen && label && !label.toLowerCase().includes(seen.toLowerCase())) button.setAttribute("aria-label", `${label}: ${seen}`);
  }
  // icons are drawn later, with titles that the name of their button does not contain
  const plain = (button) => {
    for (const icon of button.querySelectorAll('svg:not([aria-hidden="true"])')) {
      icon.querySelector("title")?.remove();
      for (const name of ["role", "aria-labelledby"]) icon.removeAttribute(name);
      icon.setAttribute("aria-hidden", "true");
    }
  };
  for (const button of document.querySelectorAll(".theme-switch-button")) {
    plain(button);
    new MutationObserver(() => plain(button)).observe(button, { childList: true, subtree: true });
  }
  // the logo stands outside every landmark
  const side = document.querySelector(".bd-sidebar-primary");
  if (side && !side.hasAttribute("role")) {
    side.setAttribute("role", "complementary");
    side.setAttribute("aria-label", "Site");
  }
  // what scrolls sideways must be within reach of the keyboard
  const wide = ".cell_output .output, .highlight pre, .pst-scrollable-table-container, .cnn-scroll, .cnn-math";
  const reach = () => {
    for (const box of document.querySelectorAll(wide))
      if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
  };
  reach();
  addEventListener("resize", reach);
});
