// Answers of the pages of a static site, read from its folder: node static_source.mjs SITE < questions > answers.
// Every question is a path, its parameters, and whether what was read before is forgotten; of every answer the requests and bytes that it took are told, too.

import { open } from "node:fs/promises";
import { pathToFileURL } from "node:url";
import { text } from "node:stream/consumers";

const folder = process.argv[2];
let requests = 0;
let bytes = 0;

globalThis.fetch = async (address, { headers = {} } = {}) => {
  const file = await open(`${folder}/${address.split("?")[0]}`);
  try {
    const { size } = await file.stat();
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.Range ?? `bytes=0-${size - 1}`).map(Number);
    const { buffer, bytesRead } = await file.read(Buffer.alloc(last - first + 1), 0, last - first + 1, first);
    const content = buffer.subarray(0, bytesRead);
    requests += 1;
    bytes += content.length;
    return new Response(content, { status: headers.Range ? 206 : 200 });
  } finally {
    await file.close();
  }
};

const { opened } = await import(pathToFileURL(`${folder}/files.js`));
// JSON has no word for infinity; what reads this makes the number of it again
const said = (_, value) => (value === Infinity ? "1e999" : value === -Infinity ? "-1e999" : value);
const answers = [];
let files;
for (const { path, parameters, cold } of JSON.parse(await text(process.stdin))) {
  [requests, bytes] = [0, 0];
  if (cold || !files) files = await opened();
  const answer = await files.answer(path, parameters).catch((error) => ({ error: error.message }));
  answers.push({ answer, requests, bytes });
}
process.stdout.write(JSON.stringify(answers, said));
