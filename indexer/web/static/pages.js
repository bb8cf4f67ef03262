// The pages of the index as a whole: its layers, and what it was made of.

import { h, number, share, table, visible } from "./dom.js";
import { ask } from "./source.js";

export const layerAddress = ({ site, layer }, ...where) => `#/units?${new URLSearchParams([["site", site], ...[`layer>=${layer}`, `layer<=${layer}`, ...where].map((one) => ["where", one])])}`;

export async function layersPage(main, { signal }) {
  const layers = await ask("layers", {}, signal);
  document.title = "Layers - neuron index";
  const deepest = Math.max(...layers.map((layer) => layer.density ?? 0)) || 1;
  main.replaceChildren(
    h("h1", {}, "Layers"),
    table(
      ["layer", "units", "never active", "active (median)", "as a bar", "maximum (median)", "highest", "kurtosis (median)"],
      layers.map((layer) => [
        h("a", { href: layerAddress(layer) }, `${layer.site}.${layer.layer}`),
        number(layer.units),
        layer.dead ? h("a", { href: layerAddress(layer, "active<=0") }, number(layer.dead)) : number(layer.dead),
        share(layer.density),
        h("span", { className: "bar", style: { width: `${(8 * (layer.density ?? 0)) / deepest}em` } }),
        number(layer.maximum),
        number(layer.highest),
        number(layer.kurtosis),
      ]),
    ),
  );
}

export async function aboutPage(main, { signal }) {
  const about = await ask("about", {}, signal);
  document.title = "About - neuron index";
  main.replaceChildren(h("h1", {}, "About this index"), facts({ ...about, layers: about.layers.map(({ name }) => name) }));
}

function facts(value) {
  if (Array.isArray(value)) return value.every((one) => typeof one !== "object") ? visible(value.join(", ")) || "none" : h("ol", {}, value.slice(0, 20).map((one) => h("li", {}, facts(one))), value.length > 20 ? h("li", {}, `and ${number(value.length - 20)} more`) : null);
  if (value && typeof value === "object") {
    const entries = Object.entries(value);
    return entries.length ? h("dl", { className: "nested" }, entries.map(([name, one]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, facts(one))])) : "none";
  }
  return typeof value === "number" ? number(value, 6) : visible(String(value ?? "")) || "-";
}
