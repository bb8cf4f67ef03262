// Tokens and the text that they make up, as indexer/index/vocabulary.py and spelled.py beside it have them.

const REPLACEMENT = "\ufffd";
const CUT_AT_START = /^(?:%[89AB][0-9A-F])+/;
// Python's $ is also before the last line break
const CUT_AT_END = /(?:%[CD][0-9A-F]|%E[0-9A-F](?:%[89AB][0-9A-F])?|%F[0-9A-F](?:%[89AB][0-9A-F]){0,2})(?=\n?$)/;
const BROKEN = /(?:%[89A-F][0-9A-F])+/g;
const read = (fatal) => new TextDecoder("utf-8", { fatal, ignoreBOM: true });

// The text of a run of tokens. pieces: what each token adds to a text; spaced: whether a text loses its first spaces.
export function textOf(ids, { pieces, spaced }) {
  const joined = ids.map((id) => pieces[id]).join("");
  const text = joined.includes("%") ? decoded(joined) : joined;
  return spaced ? text.replace(/^ +/, "") : text;
}

function decoded(joined) {
  const whole = joined.replace(CUT_AT_START, REPLACEMENT).replace(CUT_AT_END, REPLACEMENT);
  try {
    return read(true).decode(bytesOf(whole));
  } catch {
    return read(false).decode(bytesOf(whole.replace(BROKEN, REPLACEMENT)));
  }
}

function bytesOf(escaped) {
  const bytes = [];
  const parts = escaped.split(/(%[0-9A-Fa-f]{2})/);
  const encoder = new TextEncoder();
  parts.forEach((part, place) => (place % 2 ? bytes.push(Number.parseInt(part.slice(1), 16)) : bytes.push(...encoder.encode(part))));
  return new Uint8Array(bytes);
}

// Each token's share of the text: joined they are the text again.
export function spell(tokens, text) {
  const shares = [];
  let cursor = 0;
  tokens.forEach((token, place) => {
    const end = endOf(token, text, cursor) ?? nextFound(tokens.slice(place + 1), text, cursor);
    shares.push(text.slice(cursor, end));
    cursor = end;
  });
  if (shares.length) shares[shares.length - 1] += text.slice(cursor);
  return shares;
}

const bare = (token) => (token.startsWith("##") ? token.slice(2) : token);

function endOf(token, text, cursor) {
  const gap = text.startsWith(" ", cursor) ? 1 : 0;
  for (const spelling of [token, bare(token), token.startsWith(" ") ? token.slice(1) : token])
    for (const start of [cursor, cursor + gap]) if (text.startsWith(spelling, start)) return start + spelling.length;
  return undefined;
}

function nextFound(tokens, text, cursor) {
  for (const [place, token] of tokens.entries()) {
    const spelling = bare(token);
    // as many characters as Python counts, for which one beyond the first plane is one
    const near = Array.from(text.slice(cursor, cursor + 2 * (spelling.length + 2 * (place + 2))))
      .slice(0, Array.from(spelling).length + 2 * (place + 2))
      .join("");
    const found = near.indexOf(spelling);
    if (/[^\s\x1c-\x1f\x85]|\ufeff/u.test(spelling) && found >= 0) return cursor + found;
  }
  return tokens.length ? cursor : text.length;
}
