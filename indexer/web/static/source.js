// Where the answers come from: the server that these pages are from, or the files of the index that lie beside them.

const isStatic = document.querySelector('meta[name="neuron-index"]') !== null;
let files = null;

let token = sessionStorage.getItem("token") ?? "";

// What the page that is shown asked the server for: addresses at which the same is told as JSON.
export const asked = new Set();

// The token comes with the address that the program printed, and does not stay in it.
export function takeToken() {
  const address = new URL(location.href);
  const given = address.searchParams.get("token");
  if (given) {
    token = given;
    sessionStorage.setItem("token", given);
    address.searchParams.delete("token");
    history.replaceState(null, "", address);
  }
}

async function answered(response) {
  const answer = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(answer.error ?? `the server answered ${response.status}`);
  return answer;
}

// index: the name of another index that is served, for this one none.
export async function ask(path, parameters = {}, signal = undefined, index = "") {
  if (isStatic) {
    files ??= import("./files.js").then(({ opened }) => opened());
    const answer = await (await files).answer(path, parameters);
    signal?.throwIfAborted();
    return answer;
  }
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    for (const one of Array.isArray(value) ? value : [value]) if (one !== undefined && one !== "") query.append(name, one);
  const address = `${index ? `../${index}/` : ""}api/${path}${query.size ? `?${query}` : ""}`;
  asked.add(address);
  return answered(await reached(fetch(address, { signal })));
}

export const run = (text, pinned, signal) => posted("text", { text, pinned }, signal);
export const runBoth = (texts, pinned, signal) => posted("texts", { texts, pinned }, signal);
export const runSql = (query, signal) => posted("sql", { query }, signal);

async function posted(path, given, signal) {
  const headers = { "Content-Type": "application/json", "X-Token": token };
  return answered(await reached(fetch(`api/${path}`, { method: "POST", headers, body: JSON.stringify(given), signal })));
}

async function reached(response) {
  return response.catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer; is neuron-indexer serve still running?");
  });
}
