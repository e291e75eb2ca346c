// The playground: one topic over an EventSource and over a WebSocket, a box that publishes to it,
// and for each thing that it does the command that does the same.
"use strict";

const LINES_MAX = 200; // of a log
const JSON_PROTOCOL = "fanwave.v1.json";

const byId = (id) => document.getElementById(id);
const server = document.documentElement.dataset.server; // origin of the data plane

// ---- names and commands as text ----

const path = (topic) => topic.split("/").map(encodeURIComponent).join("/");

function withQuery(url, ...parts) {
  const given = parts.filter((part) => part);
  return given.length > 0 ? url + (url.includes("?") ? "&" : "?") + given.join("&") : url;
}

// One word of any shell.
const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";
const after = (id) => id && "after=" + encodeURIComponent(id);

// ---- logs ----

function say(log, text, { id, note } = {}) {
  const line = document.createElement("li");
  if (id) line.append(Object.assign(document.createElement("small"), { textContent: id }));
  if (note) line.className = "note";
  line.append(text);
  byId(log).prepend(line);
  while (byId(log).childElementCount > LINES_MAX) byId(log).lastChild.remove();
}

function state(pane, text, kind = "") {
  byId(pane + "-state").textContent = text;
  byId(pane + "-state").className = "state " + kind;
}

// The id that a pane goes on from, on its button and in its command.
function showResume(pane, id, curl) {
  byId(pane + "-resume").disabled = !id;
  byId(pane + "-resume").textContent = id ? "Resume after " + id : "Resume";
  byId(pane + "-resume-line").hidden = !id;
  byId(pane + "-resume-curl").textContent = id ? curl : "";
}

// ---- the event stream ----

const stream = { source: null, lastId: "", names: new Set(["fanwave-gap"]) };

function streamUrl(id) {
  return withQuery(`${server}/sse/${path(byId("topic").value)}`, id ? after(id) : byId("sse-start").value, byId("sse-slow").value);
}

function hearStream(event) {
  // A gap has no id of its own.
  if (event.type !== "fanwave-gap") stream.lastId = event.lastEventId;
  const name = event.type === "message" ? "" : event.type + ": ";
  say("sse-log", name + event.data, { id: event.lastEventId });
  showStream();
}

function showStream() {
  byId("sse-curl").textContent = `curl -N ${quoted(streamUrl())}`;
  const resume = `curl -N -H ${quoted("Last-Event-ID: " + stream.lastId)} ${quoted(withQuery(streamUrl(stream.lastId).split("?")[0], byId("sse-slow").value))}`;
  showResume("sse", stream.lastId, resume);
}

function openStream(id) {
  cutStream();
  if (!id) stream.lastId = "";
  const source = new EventSource(streamUrl(id));
  stream.source = source;
  state("sse", "connecting");
  source.onopen = () => state("sse", "open", "good");
  source.onmessage = hearStream;
  source.onerror = () => {
    const isOver = source.readyState === EventSource.CLOSED;
    state("sse", isOver ? "refused" : "coming back", isOver ? "bad" : "");
    if (isOver) say("sse-log", "The server refused it. Where --cors-origin is set, it must name this page's origin.", { note: true });
  };
  // An EventSource hears named events only by their names.
  for (const name of stream.names) source.addEventListener(name, hearStream);
  say("sse-log", id ? "opened after " + id : "opened", { note: true });
  showStream();
}

function cutStream() {
  if (!stream.source) return;
  stream.source.close();
  stream.source = null;
  state("sse", "cut");
  say("sse-log", "cut", { note: true });
}

function hearName(name) {
  if (!name || stream.names.has(name)) return;
  stream.names.add(name);
  stream.source?.addEventListener(name, hearStream);
}

// ---- the WebSocket ----

const talk = { socket: null, lastId: "", reference: 0 };
const speaksJson = () => byId("ws-mode").value === "json";

function socketPath(id) {
  const start = id ? after(id) : byId("ws-start").value;
  const topic = byId("topic").value;
  return speaksJson() ? withQuery("/ws?topic=" + encodeURIComponent(topic), start) : withQuery("/ws/" + path(topic), start);
}

function showSocket() {
  const curl = (id) => {
    const fields = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: ZmFud2F2ZSBwbGF5Z3JvdQ=="];
    if (speaksJson()) fields.push("Sec-WebSocket-Protocol: " + JSON_PROTOCOL);
    return `curl -N --http1.1 --output - ${fields.map((field) => "-H " + quoted(field)).join(" ")} ${quoted(`${server}${socketPath(id)}`)}`;
  };
  byId("ws-curl").textContent = curl();
  showResume("ws", speaksJson() ? talk.lastId : "", curl(talk.lastId));
  if (!speaksJson()) byId("ws-resume").textContent = "Resume: raw messages have no ids";
}

function hearSocket(message) {
  if (typeof message.data !== "string") return say("ws-log", `${message.data.size} bytes of binary data`);
  if (speaksJson()) {
    const said = JSON.parse(message.data);
    if (said.topic) talk.lastId = said.at ?? said.id;
  }
  say("ws-log", message.data);
  showSocket();
}

function openSocket(id) {
  cutSocket();
  if (!id) talk.lastId = "";
  const socket = new WebSocket(server.replace(/^http/, "ws") + socketPath(id), speaksJson() ? [JSON_PROTOCOL] : []);
  talk.socket = socket;
  state("ws", "connecting");
  socket.onopen = () => state("ws", "open", "good");
  socket.onmessage = hearSocket;
  socket.onclose = (event) => {
    if (talk.socket !== socket) return;
    talk.socket = null;
    state("ws", "closed", "bad");
    say("ws-log", `closed with ${event.code} ${event.reason}`, { note: true });
  };
  say("ws-log", id ? "opened after " + id : "opened", { note: true });
  showSocket();
}

function cutSocket() {
  if (!talk.socket) return;
  const socket = talk.socket;
  talk.socket = null;
  socket.onmessage = null;
  socket.close();
  state("ws", "cut");
  say("ws-log", "cut", { note: true });
}

// A message to begin with: a command, or data.
function proposeMessage() {
  const topic = byId("topic").value;
  const ref = ++talk.reference;
  const commands = {
    publish: { ref, publish: { topic, data: "from the WebSocket" } },
    presence: { ref, presence: { topic } },
    subscribe: { ref, subscribe: { match: "play/**", last: 10 } },
    unsubscribe: { ref, unsubscribe: { match: "play/**" } },
    ping: { ref, ping: {} },
  };
  byId("ws-message").value = speaksJson() ? JSON.stringify(commands[byId("ws-command").value]) : "from the WebSocket";
  byId("ws-command-label").hidden = !speaksJson();
  showSend();
}

// What the message would publish.
function proposed() {
  const message = byId("ws-message").value;
  if (!speaksJson()) return { topic: byId("topic").value, data: message };
  try {
    const { topic, data } = JSON.parse(message).publish;
    return { topic: String(topic), data: typeof data === "string" ? data : JSON.stringify(data) };
  } catch {
    return null;
  }
}

// Only a publish and the question who is there have a command of curl.
function showSend() {
  const command = speaksJson() ? byId("ws-command").value : "publish";
  let curl = "";
  if (command === "publish") {
    const publish = proposed();
    curl = publish ? publishCurl("data", publish.topic, "", publish.data ?? "") : "";
  } else if (command === "presence") {
    curl = `curl ${authorization()}${quoted(`${location.origin}/topics/${path(byId("topic").value)}`)}`;
  }
  byId("ws-send-curl").textContent = curl;
  byId("ws-send-line").hidden = !curl;
}

function send(event) {
  event.preventDefault();
  if (talk.socket?.readyState !== WebSocket.OPEN) return say("ws-log", "The WebSocket is not open.", { note: true });
  talk.socket.send(byId("ws-message").value);
  if (speaksJson()) proposeMessage();
}

// ---- publishing ----

const authorization = () => (session.needsToken ? '-H "Authorization: Bearer $TOKEN" ' : "");

function publishUrl(plane, topic, name) {
  const origin = plane === "control" ? location.origin : server;
  return withQuery(`${origin}/topics/${path(topic)}`, name && "event=" + encodeURIComponent(name));
}

function publishCurl(plane, topic, name, data) {
  // Without -raw an @ would name a file.
  const flag = data.startsWith("@") ? "--data-raw" : "-d";
  return `curl ${plane === "control" ? authorization() : ""}${flag} ${quoted(data)} ${quoted(publishUrl(plane, topic, name))}`;
}

function showPublish() {
  const [plane, topic, name, data] = ["plane", "topic", "name", "data"].map((id) => byId(id).value);
  byId("publish-curl").textContent = publishCurl(plane, topic, name, data);
}

async function publish(event) {
  event.preventDefault();
  const [plane, topic, name, data] = ["plane", "topic", "name", "data"].map((id) => byId(id).value);
  hearName(name);
  const said = byId("published");
  try {
    const ask = plane === "control" ? session.ask : fetch;
    const answer = await ask(publishUrl(plane, topic, name), { method: "POST", body: data });
    const { id, error } = await answer.json();
    said.textContent = answer.ok ? `published as ${id}` : `refused with ${answer.status}: ${error}`;
    said.className = answer.ok ? "quiet" : "quiet bad";
  } catch (error) {
    said.textContent = `not published: ${error.message}`;
    said.className = "quiet bad";
  }
  showPublish();
}

// ---- the page ----

function copy(button) {
  const text = byId(button.dataset.copy);
  const done = () => {
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  // Only pages of localhost and of TLS have a clipboard; elsewhere the text is marked.
  const mark = () => getSelection().selectAllChildren(text);
  if (!navigator.clipboard) return mark();
  navigator.clipboard.writeText(text.textContent).then(done, mark);
}

function openBoth() {
  showPublish();
  proposeMessage();
  openStream();
  openSocket();
}

byId("publish").addEventListener("submit", publish);
byId("publish").addEventListener("input", showPublish);
byId("topic").addEventListener("change", () => byId("topic").value && openBoth());
byId("sse-open").addEventListener("click", () => openStream());
byId("sse-cut").addEventListener("click", cutStream);
byId("sse-resume").addEventListener("click", () => openStream(stream.lastId));
for (const id of ["sse-start", "sse-slow"]) byId(id).addEventListener("change", () => openStream());
byId("ws-open").addEventListener("click", () => openSocket());
byId("ws-cut").addEventListener("click", cutSocket);
byId("ws-resume").addEventListener("click", () => openSocket(talk.lastId));
byId("ws-start").addEventListener("change", () => openSocket());
byId("ws-mode").addEventListener("change", () => {
  proposeMessage();
  openSocket();
});
byId("ws-command").addEventListener("change", proposeMessage);
byId("ws-message").addEventListener("input", showSend);
byId("ws-send").addEventListener("submit", send);
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
addEventListener("signed-in", openBoth);
openBoth();
// Whether a token is wanted is known before the first publish.
session.ask("/topics?limit=1").then(showPublish, showPublish);
