// Unpacks plotly.js, which lies in this page, and draws the figures beside their data.
(async () => {
  const packed = document.getElementById("plotly").textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.text = await new Response(stream).text();
  document.head.append(script);
  const narrow = matchMedia("(max-width: 40rem)").matches;
  for (const place of document.querySelectorAll(".figure")) {
    const figure = JSON.parse(place.querySelector("script").textContent);
    if (narrow) figure.layout.height += 100;  // the legend takes more lines
    await Plotly.newPlot(place, figure.data, figure.layout, {
      responsive: true, displaylogo: false, displayModeBar: narrow ? false : undefined,
    });
    place.classList.add("drawn");
  }
  const redraw = () => document.querySelectorAll(".figure").forEach((f) => Plotly.Plots.resize(f));
  addEventListener("beforeprint", redraw);
  addEventListener("afterprint", redraw);
})();
