/* The cells of a job that still runs: those of its finished blocks, asked for by what is in view. */

const MOST = 5000; // in one answer
const NONE = { some: [], truncated: false };

/**
 * The finished cells in the box [x0, y0, x1, y1] of the deep-zoom image, as GeoJSON features there, and
 * whether there are more. None where the job has none to show yet, or ended meanwhile: that is told by
 * itself.
 * @param {number[]} bounds where the image begins, in level-0 pixels
 */
export async function finished(job, box, [left = 0, top = 0]) {
  const [x0, y0, x1, y1] = box;
  const window = [x0 + left, y0 + top, x1 + left, y1 + top].map(Math.round).join(",");
  const answer = await fetch(`/api/jobs/${job}/cells?bbox=${window}&limit=${MOST}`, {
    headers: { Accept: "application/json" },
  });
  if (!answer.ok) return NONE;
  const { cells, provisional, truncated } = await answer.json();
  if (!provisional) return NONE;
  return { some: cells.map((cell) => featureOf(cell, left, top)), truncated };
}

function featureOf({ polygon, area }, left, top) {
  const ring = polygon.map(([x, y]) => [x - left, y - top]);
  return {
    id: "",
    geometry: { type: "Polygon", coordinates: [[...ring, ring[0]]] },
    properties: { measurements: { "Area px^2": area } },
  };
}
