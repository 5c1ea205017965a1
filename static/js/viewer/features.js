/* Reads `cells.geojson.gz` while it arrives: one feature a line, as our exporter writes it. */

const LINES_A_TURN = 2000;

/**
 * Yields lists of features of the gzipped GeoJSON at `url`, in file order.
 * Throws an Error whose message is a sentence for people.
 */
export async function* features(url, signal) {
  const answer = await fetch(url, { signal });
  if (!answer.ok) {
    throw new Error(
      `The cells could not be fetched (the server answered ${answer.status}). Reload the page.`,
    );
  }
  const text = answer.body
    .pipeThrough(new DecompressionStream("gzip"))
    .pipeThrough(new TextDecoderStream());
  let rest = "";
  for await (const part of chunksOf(text)) {
    const lines = (rest + part).split("\n");
    rest = lines.pop();
    for (let at = 0; at < lines.length; at += LINES_A_TURN) {
      yield lines.slice(at, at + LINES_A_TURN).flatMap(parsed);
    }
  }
  yield parsed(rest);
}

function parsed(line) {
  if (!line.startsWith('{"type":"Feature",')) return []; // the frame round the features
  return [JSON.parse(line.endsWith(",") ? line.slice(0, -1) : line)];
}

/** A stream as an iterator; not every browser iterates streams by itself. */
async function* chunksOf(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.releaseLock();
  }
}
