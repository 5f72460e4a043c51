// Draws the Vega-Lite charts that the build left in the page as data. They stand on a white card in light and dark mode,
// as all figures do, so there is nothing to follow when the mode is switched.
addEventListener("DOMContentLoaded", () => {
  for (const chart of document.querySelectorAll(".cnn-chart")) {
    const spec = JSON.parse(chart.querySelector('script[type="application/json"]').textContent);
    const target = chart.querySelector(".cnn-chart-target");
    if (typeof spec.width === "number" || spec.width === undefined) spec.width = "container";
    spec.autosize = { type: "fit", contains: "padding" };
    const ink = "#1c1e21";
    const config = {
      background: "#ffffff",
      font: "DejaVu Sans, Segoe UI, Helvetica, Arial, sans-serif",
      axis: { labelFontSize: 12, titleFontSize: 13, titleFontWeight: "normal", labelColor: ink, titleColor: ink, gridColor: "#dfe2e6", domainColor: "#74777c", tickColor: "#74777c" },
      legend: { labelFontSize: 12, titleFontSize: 12, labelColor: ink, titleColor: ink },
      title: { color: ink },
      view: { stroke: "transparent" },
    };
    window.vegaEmbed(target, spec, { renderer: "svg", actions: false, config });
  }
});
