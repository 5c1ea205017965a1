/* What the server is asked for; an Error's message is its own sentence. */

/** Wait until the server has the slide, and `say` so meanwhile. True where it had to be waited for. */
export async function fetchedSlide(dzi, say) {
  for (let waited = false; ; waited = true) {
    const answer = await fetch(dzi);
    const retryS = Number(answer.headers.get("Retry-After"));
    if (answer.ok || answer.status !== 503 || !retryS) {
      await refused(answer);
      if (waited) say("");
      return waited;
    }
    say((await answer.json()).detail);
    await new Promise((resolve) => setTimeout(resolve, retryS * 1000));
  }
}

export async function json(url) {
  const answer = await fetch(url, { headers: { Accept: "application/json" } });
  await refused(answer);
  return answer.json();
}

/** Throw what the server said where its answer is a refusal. */
async function refused(answer) {
  if (answer.ok) return;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.detail ?? `The server answered ${answer.status}. Reload the page.`);
}
