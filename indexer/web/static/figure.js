// A picture of a page as a file of its own, with the colours that it has on the page.

import { h } from "./dom.js";

export function savers(picture, name) {
  const button = (kind, save) => h("button", { type: "button", onclick: async () => offer(await save(picture), `${name}.${kind}`) }, `Save as ${kind.toUpperCase()}`);
  return h("p", { className: "controls savers" }, button("svg", asSvg), button("png", asPng));
}

function asSvg(picture) {
  const copy = picture.cloneNode(true);
  const originals = [picture, ...picture.querySelectorAll("*")];
  for (const [place, node] of [copy, ...copy.querySelectorAll("*")].entries()) {
    const style = getComputedStyle(originals[place]);
    if (["rect", "text"].includes(node.localName)) node.setAttribute("fill", style.fill);
    if (node.localName === "path") for (const key of ["fill", "stroke"]) node.setAttribute(key, style[key]);
    if (node.localName === "text") for (const [key, value] of [["font-size", style.fontSize], ["font-family", "sans-serif"]]) node.setAttribute(key, value);
  }
  copy.querySelector(".mark")?.remove();
  const { width, height } = picture.viewBox.baseVal;
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  return new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" });
}

async function asPng(picture) {
  const image = new Image();
  image.src = `data:image/svg+xml,${encodeURIComponent(await asSvg(picture).text())}`;
  await image.decode();
  const canvas = h("canvas", { width: 3 * image.width, height: 3 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve));
}

function offer(content, download) {
  const href = URL.createObjectURL(content);
  h("a", { href, download }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}
