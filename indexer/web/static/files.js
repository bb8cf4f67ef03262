// The answers of a static site: those of the server, read from the index's own files. web/answers.py says what they are.

import { Parquet, shortest } from "./parquet.js";
import { spell, textOf } from "./spell.js";

const SMALL_COLUMNS = ["unit", "kind", "rank", "band", "value", "up", "document", "sequence", "position", "token_id", "window_start"];
// of a file of examples the page index lies before the footer, and mostly fits into this
const PAGE_INDEX = 1 << 16;
// smaller files of which most is needed are read whole
const WHOLE = 1 << 18;
// of a list, beside what it is sorted and filtered by
const SHOWN = ["active", "maximum", "kurtosis"];
const PEAKS = 5;
const LINES = /\.(jsonl|ndjson)(\.\w+)?$/;
const SERVER = "These pages have no server; look at the index with neuron-indexer serve to";

export async function opened(place = "") {
  const response = await fetch(`${place}site.json`, { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw new Error(`${place}site.json cannot be read${response ? `: the host answered ${response.status}` : ""}`);
  return new Files(await response.json(), place);
}

export class Files {
  constructor(site, place = "") {
    this.site = site;
    this.place = place;
    this.files = new Map();
    let first = 0;
    this.layers = site.layers.map((layer) => {
      const found = { ...layer, first };
      first += layer.units;
      return found;
    });
  }

  async answer(path, parameters = {}) {
    const [kind, ...rest] = path.split("/");
    if (kind === "about") return { ...this.site.about, static: true };
    if (kind === "layers") return this.site.overview;
    if (kind === "unit") return this.unit(decodeURIComponent(rest.join("/")));
    if (kind === "units") return this.units(parameters);
    if (kind === "briefly") return Promise.all([parameters.unit].flat().map((name) => this.briefly(name)));
    throw new Error(`${SERVER} ${kind === "search" ? "search it" : kind === "document" ? "read whole documents" : `ask for ${kind}`}.`);
  }

  file(path, options = {}) {
    if (!this.site.files[path]) throw new Error(`${path} is no file of this index`);
    const [bytes, footer] = this.site.files[path];
    if (!this.files.has(path)) this.files.set(path, new Parquet(`${this.place}index/${path}?${this.site.digest}`, { bytes, footer, ...options }));
    return this.files.get(path);
  }

  named(name) {
    const written = /^(\d+)\/(\d+)$/.exec(name.trim());
    const parts = written ? ["mlp", written[1], written[2]] : (/^(.+)\.(\d+)\.(?:(\d+):)?(\d+)$/.exec(name.trim()) ?? []).slice(1);
    const [site, number, expert, last] = written ? [parts[0], parts[1], undefined, parts[2]] : parts;
    if (site === undefined) throw new Error(`unit "${name}": write it as mlp.5.1733`);
    const place = this.layers.findIndex((one) => one.site === site && one.layer === Number(number));
    if (place < 0) throw new Error(`unit "${name}": the index has no ${site}.${number}`);
    const layer = this.layers[place];
    const width = layer.units / (layer.experts ?? 1);
    if (expert !== undefined && (!layer.experts || Number(last) >= width)) throw new Error(`unit "${name}": the layer has no such expert or neuron`);
    const unit = expert === undefined ? Number(last) : Number(expert) * width + Number(last);
    if (unit >= layer.units) throw new Error(`unit "${name}": layer ${layer.name} has units 0-${layer.units - 1}`);
    return { place, layer, unit };
  }

  async unit(name) {
    const { place, layer, unit } = this.named(name);
    const [numbers, bins, examples, head] = await Promise.all([this.numbers(layer, unit), this.bins(layer, unit), this.examples(layer, unit), this.head(layer, unit)]);
    const documents = await this.documents(new Set(Object.values(examples).flat().map((example) => example.document)));
    return { name: `${layer.name}.${unit}`, numbers, bins, ...examples, documents, window: layer.window, neighbours: this.neighbours(place, unit), head };
  }

  async numbers(layer, unit) {
    const [row] = await this.file("units.parquet").rows(layer.first + unit, layer.first + unit + 1, this.site.units);
    if (row.site !== layer.site || row.layer !== layer.layer || row.unit !== unit) throw new Error(`units.parquet: the row of ${layer.name}.${unit} is not in its place; make these pages again`);
    return row;
  }

  // Rows of a layer's file that belong to a unit, and where the first of them is.
  async ofUnit(path, unit, columns, options) {
    const file = this.file(path, options);
    const group = (await file.groups("unit")).find(({ least, largest }) => least <= unit && unit <= largest);
    if (!group) return { file, first: 0, rows: [] };
    let first = -1;
    const wanted = (row, place) => {
      if (row.unit === unit && first < 0) first = group.first + place;
      return row.unit === unit;
    };
    const rows = await file.rows(group.first, group.first + group.rows, columns, { wanted });
    return { file, first, rows };
  }

  async bins(layer, unit) {
    const { rows } = await this.ofUnit(`histograms/${layer.name}.parquet`, unit, ["unit", "lower", "upper", "count"]);
    return rows.map((row) => [row.lower, row.upper, row.count]);
  }

  async examples(layer, unit) {
    const path = `examples/${layer.name}.parquet`;
    const [{ file, first, rows }, vocabulary] = await Promise.all([this.ofUnit(path, unit, SMALL_COLUMNS, { tail: PAGE_INDEX }), this.vocabulary()]);
    const windows = rows.length ? await file.rows(first, first + rows.length, ["token_ids", "activations"], { narrow: true }) : [];
    const found = { top: [], sample: [], bottom: [] };
    rows.forEach(({ unit: _, token_id, ...row }, place) => {
      const { token_ids: ids, activations } = windows[place];
      if (ids[row.position - row.window_start] !== token_id || ids.length !== activations.length) throw new Error(`${path}: a window does not hold its peak; make these pages again`);
      const pieces = spell(ids.map((id) => vocabulary.tokens[id]), textOf(ids, vocabulary));
      found[row.kind].push({ ...row, document: String(row.document), token: vocabulary.tokens[token_id], activations, pieces, ids });
    });
    return { top: found.top, samples: found.sample, bottom: found.bottom };
  }

  async briefly(name) {
    const { layer, unit } = this.named(name);
    const [bins, { rows }, { tokens }] = await Promise.all([this.bins(layer, unit), this.ofUnit(`examples/${layer.name}.parquet`, unit, SMALL_COLUMNS, { tail: PAGE_INDEX }), this.vocabulary()]);
    return { name, bins, tokens: rows.filter(({ kind, rank }) => kind === "top" && rank <= PEAKS).map(({ token_id }) => tokens[token_id]) };
  }

  async vocabulary() {
    // its one row is nearly all of the file
    this.spelled ??= this.file("vocabulary.parquet", { tail: Infinity }).rows(0, 1, ["spaced", "tokens", "pieces"]);
    return (await this.spelled)[0];
  }

  async documents(wanted) {
    const file = this.file("documents.parquet", { tail: WHOLE });
    const sought = [...wanted].map(Number);
    const groups = (await file.groups("document")).filter(({ least, largest }) => sought.some((one) => least <= one && one <= largest));
    const rows = (await Promise.all(groups.map(({ first, rows }) => file.rows(first, first + rows, ["document", "source", "row", "characters"])))).flat();
    return Object.fromEntries(rows.filter((row) => wanted.has(String(row.document))).map((row) => [String(row.document), { name: sourceName(row), ...row, document: String(row.document) }]));
  }

  async head(layer, unit) {
    const path = `heads/${layer.name}.parquet`;
    if (!this.site.files[path]) return null;
    const columns = ["previous", "duplicate", "induction", "first_token", "entropy", "distance"];
    const { rows } = await this.ofUnit(path, unit, ["unit", "tokens", ...columns]);
    const { tokens } = rows[0];
    const total = tokens.reduce((sum, one) => sum + one, 0);
    const mean = (values) => (Array.isArray(values) ? (values.length ? shortest(Math.fround(values.reduce((sum, one, place) => sum + Math.fround(one) * tokens[place], 0) / total)) : null) : values);
    return { site: layer.site, layer: layer.layer, head: unit, ...Object.fromEntries(columns.map((name) => [name, mean(rows[0][name])])) };
  }

  neighbours(place, unit) {
    const here = this.layers[place];
    const layers = this.layers.filter(({ site }) => site === here.site);
    const at = layers.indexOf(here);
    const named = (where, number) => (number >= 0 && number < (layers[where]?.units ?? 0) ? `${layers[where].name}.${number}` : null);
    return { before: named(at, unit - 1), after: named(at, unit + 1), below: named(at - 1, unit), above: named(at + 1, unit) };
  }

  // A list reads whole columns of units.parquet, those alone that it is sorted and filtered by or shows.
  async units({ sort = "maximum", descending = true, where = [], site, offset = 0, limit = 50 }) {
    const conditions = [where].flat().map((text) => {
      const [, column, comparison, bound] = /^\s*(\w+)\s*(>=|<=)\s*(\S+)\s*$/.exec(text) ?? [];
      if (!this.site.units.includes(column) || column === "site" || Number.isNaN(Number(bound))) throw new Error(`condition "${text}": write it as maximum>=2.5 or active<=100`);
      return { column, at: comparison, bound: Number(bound) };
    });
    if (!this.site.units.includes(sort)) throw new Error(`column "${sort}": there is none of this name`);
    const columns = [...new Set(["layer", "unit", "count", ...SHOWN, sort, ...conditions.map(({ column }) => column)])];
    const total = this.layers.at(-1).first + this.layers.at(-1).units;
    const rows = await this.file("units.parquet").rows(0, total, columns);
    for (const layer of this.layers) for (let unit = 0; unit < layer.units; unit++) rows[layer.first + unit].site = layer.site;
    const kept = rows.filter((row) => (!site || row.site === site) && conditions.every(({ column, at, bound }) => row[column] !== null && (at === ">=" ? row[column] >= bound : row[column] <= bound)));
    const sign = descending === true || descending === "true" ? -1 : 1;
    // a stable sort: of equals the first in the index stay first
    kept.sort((one, other) => (one[sort] === null) - (other[sort] === null) || sign * (one[sort] - other[sort]));
    return { total: kept.length, offset, rows: kept.slice(offset, offset + limit) };
  }
}

function sourceName({ source, row }) {
  if (LINES.test(source.toLowerCase())) return `${source} line ${row + 1}`;
  return row ? `${source} row ${row}` : source;
}
