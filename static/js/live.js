/* One JSON websocket: knows the last sequence number, comes back by itself, tells how the link is. */

const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 15000;
const SIGNED_OUT = 4401;
const NOT_YOURS = 4404;

/** Events: "link" (detail: connecting, live, reconnecting, off), "message" (detail: the message). */
export class Feed extends EventTarget {
  /**
   * @param {string} path address of the websocket
   * @param {{workflow?: string, since?: string}} options one workflow alone; the last number seen
   */
  constructor(path, { workflow = "", since = "" } = {}) {
    super();
    this.path = path;
    this.workflow = workflow;
    this.since = since;
    this.wait = FIRST_WAIT_MS;
    this.timer = 0;
    this.stopped = false;
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
    addEventListener("pagehide", () => this.socket?.close());
    addEventListener("pageshow", (event) => event.persisted && this.open());
  }

  open() {
    clearTimeout(this.timer);
    const url = new URL(this.path, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    if (this.workflow) url.searchParams.set("workflow", this.workflow);
    if (this.since !== "") url.searchParams.set("since", this.since);
    this.socket = new WebSocket(url);
    this.socket.onopen = () => this.tell("live");
    this.socket.onmessage = (event) => this.take(event.data);
    this.socket.onclose = (event) => this.lost(event.code);
  }

  take(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return; // a proxy's words, not ours
    }
    this.wait = FIRST_WAIT_MS; // not when it opens: a server that closes at once is left in peace
    if (Number.isInteger(message.seq)) this.since = String(message.seq);
    this.dispatchEvent(new CustomEvent("message", { detail: message }));
  }

  lost(code) {
    if (code === SIGNED_OUT || code === NOT_YOURS) {
      this.stopped = true;
      this.tell("off");
      return;
    }
    this.tell("reconnecting");
    // spread out, so that a restarted server is not met by everybody at once
    this.timer = setTimeout(() => this.open(), this.wait * (0.7 + Math.random() * 0.6));
    this.wait = Math.min(this.wait * 2, LONGEST_WAIT_MS);
  }

  /** Try again now: the network or the tab has just come back. */
  hurry() {
    const idle = !this.socket || this.socket.readyState === WebSocket.CLOSED;
    if (idle && !this.stopped) this.open();
  }

  tell(link) {
    this.dispatchEvent(new CustomEvent("link", { detail: link }));
  }
}
