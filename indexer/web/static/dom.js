// Elements from plain values. Text is only ever text: nothing here makes markup of it.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (name in node && !(node instanceof SVGElement)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const h = (name, properties, ...children) => filled(document.createElement(name), properties, children);
export const s = (name, properties, ...children) => filled(document.createElementNS(SVG, name), properties, children);

export function table(names, rows) {
  return h("div", { className: "scroll", tabIndex: 0 }, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))));
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "-";
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

// A share of tokens, never rounded to nothing: 12 %, 0.03 %, 4.1e-6, no token.
export function share(value) {
  if (value === null || value === undefined) return "-";
  if (value === 0) return "no token";
  return value >= 1e-4 ? `${Number((100 * value).toPrecision(3))} %` : value.toExponential(1);
}

// A token so that it can be seen: blanks and line breaks have signs, and what drives a terminal or turns text has none.
export function visible(text) {
  return text
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}
