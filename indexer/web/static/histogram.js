// A histogram as a picture: a bar for each bin, eight to an octave, counts on a logarithmic axis or a linear one.

import { number, s } from "./dom.js";

const HEIGHT = 120;
const FOOT = 18;

// over: counts of another unit in the same bins, drawn as an outline; in tokens of the first one's corpus.
export function histogram(bins, { width = 640, onBin = undefined, small = false, linear = false, over = undefined } = {}) {
  const height = small ? 22 : HEIGHT;
  const most = Math.max(...bins.map((bin) => bin[2]), ...(over ?? []), 1);
  const bar = width / Math.max(bins.length, 1);
  const part = (count) => (linear ? count / most : Math.log(count + 1) / Math.log(most + 1));
  const tall = (count) => (count ? Math.max(part(count) * height, 1) : 0);
  const bars = bins.map(([lower, upper, count], place) => {
    const node = s(
      "rect",
      { x: place * bar, y: height - tall(count), width: Math.max(bar - 0.3, 0.5), height: tall(count), class: upper > 0 ? "high" : lower < 0 ? "low" : "zero" },
      s("title", {}, `${number(lower)} to ${number(upper)}: ${number(count)} tokens`),
    );
    if (onBin) node.addEventListener("click", () => onBin(place));
    return node;
  });
  const label = `Histogram: ${number(bins.reduce((sum, bin) => sum + bin[2], 0))} tokens from ${number(bins[0]?.[0])} to ${number(bins.at(-1)?.[1])}`;
  const foot = small ? 0 : FOOT;
  const picture = s("svg", { viewBox: `0 0 ${width} ${height + foot}`, class: small ? "spark" : "histogram", role: "img", "aria-label": label }, bars);
  if (!small) picture.append(...axis(bins, bar, height));
  if (over) picture.append(s("path", { class: "over", d: `M0 ${height}${over.map((count, place) => `V${height - tall(count)}H${(place + 1) * bar}`).join("")}V${height}` }));
  const mark = s("line", { class: "mark", y1: 0, y2: height, visibility: "hidden" });
  picture.append(mark);
  picture.mark = (place) => {
    mark.setAttribute("x1", (place + 0.5) * bar);
    mark.setAttribute("x2", (place + 0.5) * bar);
    mark.setAttribute("visibility", place < 0 ? "hidden" : "visible");
  };
  return picture;
}

function axis(bins, bar, height) {
  const wanted = Math.max(Math.round(bins.length / 8), 1);
  return bins
    .map(([lower, upper], place) => [upper > 0 ? lower : upper, place])
    .filter(([, place]) => place % wanted === 0)
    .map(([edge, place]) => s("text", { x: place * bar, y: height + 13, class: "axis" }, number(edge, 2)));
}
