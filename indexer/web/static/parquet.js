// Rows of a Parquet file behind an address, of which only the bytes that hold them are read.

import { parquetMetadata } from "./vendor/hyparquet/metadata.js";
import { parquetReadObjects } from "./vendor/hyparquet/read.js";
import { decompress } from "./vendor/fzstd.js";

const compressors = { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) };
// a smaller file is read whole, and a smaller gap between two ranges with them
const SMALL = 1 << 16;
// parts of a file that are kept
const MOST_KEPT = 8;

export class Parquet {
  // bytes: of the file; footer: of its footer, with the eight behind it; tail: what is read at once of its end, at least
  constructor(address, { bytes, footer, tail = 0 }) {
    this.address = address;
    this.byteLength = bytes;
    this.read = new Map();
    this.waiting = [];
    const start = bytes <= SMALL ? 0 : Math.max(bytes - Math.max(footer, tail), 0);
    this.held = this.fetched(start, bytes).then((content) => ({ start, content }));
    this.metadata = this.held.then(({ content }) => parquetMetadata(content));
    // whoever asks for rows is told
    this.metadata.catch(() => {});
  }

  // Of each row group its first row, how many it has, and the least and the largest of a column in it.
  async groups(column) {
    let first = 0;
    return (await this.metadata).row_groups.map(({ num_rows, columns }) => {
      const { statistics } = columns.find((chunk) => chunk.meta_data.path_in_schema[0] === column).meta_data;
      const group = { first, rows: Number(num_rows), least: Number(statistics.min_value), largest: Number(statistics.max_value) };
      first += group.rows;
      return group;
    });
  }

  // Rows first to last - 1 of some columns, those alone that are wanted, as values that JSON could hold.
  // narrow: read the pages that hold them, not whole columns of their row group.
  async rows(first, last, columns, { wanted = () => true, narrow = false } = {}) {
    const metadata = await this.metadata;
    const floats = new Set(metadata.row_groups[0]?.columns.filter(({ meta_data }) => meta_data.type === "FLOAT").map(({ meta_data }) => meta_data.path_in_schema[0]));
    const read = () => parquetReadObjects({ file: this, metadata, columns, rowStart: first, rowEnd: last, compressors, useOffsetIndex: narrow });
    const found = await (narrow ? read() : this.kept(`${first} ${last} ${columns}`, read));
    return found.filter(wanted).map((row) => Object.fromEntries(columns.map((name) => [name, plain(row[name], floats.has(name))])));
  }

  // What was read last is kept: the next unit's rows mostly lie there, too.
  kept(asked, read) {
    const found = this.read.get(asked) ?? read();
    found.catch(() => this.read.delete(asked));
    // what is asked for again becomes the last
    this.read.delete(asked);
    this.read.set(asked, found);
    if (this.read.size > MOST_KEPT) this.read.delete(this.read.keys().next().value);
    return found;
  }

  // Called by hyparquet: what is asked for in the same moment is read together where it lies together.
  async slice(start, end = this.byteLength) {
    const { start: from, content } = await this.held;
    if (start >= from) return content.slice(start - from, end - from);
    return new Promise((resolve, reject) => {
      this.waiting.push({ start, end, resolve, reject });
      if (this.waiting.length === 1) setTimeout(() => this.readWaiting());
    });
  }

  readWaiting() {
    const sorted = this.waiting.sort((one, other) => one.start - other.start);
    this.waiting = [];
    for (const [first, ...others] of runs(sorted)) {
      const all = [first, ...others];
      const end = Math.max(...all.map((one) => one.end));
      this.fetched(first.start, end).then(
        (content) => all.forEach((one) => one.resolve(content.slice(one.start - first.start, one.end - first.start))),
        (error) => all.forEach((one) => one.reject(error)),
      );
    }
  }

  async fetched(start, end) {
    const response = await fetch(this.address, { headers: { Range: `bytes=${start}-${end - 1}` } }).catch(() => {
      throw new Error(`${this.address} cannot be reached`);
    });
    if (response.status === 206 || (response.ok && start === 0 && end === this.byteLength)) {
      const content = await response.arrayBuffer();
      if (content.byteLength === end - start) return content;
      throw new Error(`${this.address} has other bytes than when these pages were made; make them again`);
    }
    await response.body?.cancel();
    throw new Error(response.ok ? `The host of ${this.address} does not answer ranges; these pages need one that does` : `${this.address}: the host answered ${response.status}`);
  }
}

function* runs(sorted) {
  let run = [];
  for (const one of sorted) {
    if (run.length && one.start - run.at(-1).end > SMALL) {
      yield run;
      run = [];
    }
    run.push(one);
  }
  if (run.length) yield run;
}

function plain(value, short) {
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "number") return Number.isNaN(value) ? null : short ? shortest(value) : value;
  if (ArrayBuffer.isView(value) || Array.isArray(value)) return Array.from(value, (one) => plain(one, short));
  return value ?? null;
}

// The decimal with the fewest digits that a float32 is the nearest to, as people typed it; of two as near the even one.
export function shortest(value) {
  if (!Number.isFinite(value)) return value;
  let digits = 1;
  while (digits < 9 && Math.fround(Number(value.toPrecision(digits))) !== value) digits++;
  // toPrecision takes the larger of two numbers that are as near
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const last = Number(mantissa.at(-1));
  const halfway = last % 2 === 1 && value.toPrecision(digits + 3).split("e")[0].replace(/0+$/, "").endsWith("5") && /^50*$/.test(value.toExponential(60).split("e")[0].replace(/[-.]/g, "").slice(digits));
  return Number(`${halfway ? mantissa.slice(0, -1) + (last - 1) : mantissa}e${exponent}`);
}
