// The dashboard: asks the control plane once a second and shows what it says. Counts are those of
// /stats as they are; rates and quantiles of now are differences between two answers.
"use strict";

const SECONDS = 120; // of the charts
const TOPICS_SHOWN = 10;
const TOPICS_ASKED = 1000;
const FORMATS = [["sse", "event streams", "s0"], ["websocket", "WebSockets", "s1"]];

const byId = (id) => document.getElementById(id);
const past = []; // one entry per answer, the newest last
let paused = false;
let topicsBefore = null;
let turn = 0;

// ---- numbers as text ----

const grouped = (value) => Math.round(value).toLocaleString("en-US");

function count(value) {
  if (value >= 1e9) return (value / 1e9).toPrecision(3) + " G";
  if (value >= 1e7) return (value / 1e6).toPrecision(3) + " M";
  return value > 0 && value < 10 ? String(+value.toPrecision(2)) : grouped(value);
}

function bytes(value) {
  for (const [name, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (value >= size) return (value / size).toPrecision(3) + " " + name;
  }
  return grouped(value) + " B";
}

function seconds(value) {
  if (value === null) return "–";
  if (value >= 1) return +value.toPrecision(3) + " s";
  if (value >= 1e-3) return +(value * 1e3).toPrecision(3) + " ms";
  return +(value * 1e6).toPrecision(3) + " µs";
}

// ---- the page ----

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// A figure of /stats as it is: its value for programs, its text for people.
function figure(value, text) {
  return element("data", { value }, text ?? grouped(value));
}

function rows(id, list, columns, nothing) {
  const made = list.map((one) => element("tr", null, ...one));
  byId(id).replaceChildren(
    ...(made.length > 0 ? made : [element("tr", null, element("td", { class: "empty", colspan: columns }, nothing))]),
  );
}

const left = (...content) => element("td", { class: "left" }, ...content);
const head = (...content) => element("th", { class: "left", scope: "row" }, ...content);
const cell = (...content) => element("td", null, ...content);

function at(stats, path) {
  return path.split(".").reduce((value, name) => value?.[name], stats);
}

// ---- quantiles of now: differences of the histograms in /metrics ----

// By name of a histogram the counts below each bound, all shards together.
function histograms(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const parts = /^fanwave_publish_to_(shard|last)_seconds_bucket\{.*le="([^"]+)"\} (\d+)/.exec(line);
    if (!parts) continue;
    const [, name, bound, below] = parts;
    found[name] ??= new Map();
    const le = bound === "+Inf" ? Infinity : Number(bound);
    found[name].set(le, (found[name].get(le) ?? 0) + Number(below));
  }
  return found;
}

// As histogram_quantile of Prometheus: within a bucket events are spread evenly.
function quantile(now, before, wanted) {
  if (!now || !before) return null;
  const bounds = [...now].map(([le, below]) => [le, below - (before.get(le) ?? 0)]).sort((a, b) => a[0] - b[0]);
  const total = bounds.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const rank = wanted * total;
  let [from, passed] = [0, 0];
  for (const [le, below] of bounds) {
    if (below >= rank) return le === Infinity ? from : from + (le - from) * (rank - passed) / Math.max(below - passed, 1e-9);
    [from, passed] = [le, below];
  }
  return null;
}

// ---- charts ----

const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The next of 1, 2, 4 times a power of ten, of units of bytes for bytes.
function ceiling(value, unit) {
  if (unit === bytes && value >= 1024) {
    const size = 1024 ** Math.floor(Math.log2(value) / 10);
    return ceiling(value / size) * size;
  }
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

// series: [name, class, value of an entry]; a gap where there is none.
function chart(id, series, unit) {
  const [width, height, top, bottom, inset] = [420, 170, 26, 20, 58];
  const values = series.map(([, , value]) => past.map((entry) => [entry.at, value(entry)]));
  const least = unit === seconds ? 1e-6 : 4;
  const most = ceiling(Math.max(least, ...values.flat().map(([, value]) => value ?? 0)), unit);
  const now = past.at(-1).at;
  const x = (time) => width - 4 - (now - time) / 1000 / SECONDS * (width - inset - 4);
  const y = (value) => height - bottom - value / most * (height - top - bottom);
  const drawn = [];
  for (const share of [0, 0.5, 1]) {
    const line = { x1: inset, x2: width - 4, y1: y(most * share), y2: y(most * share), class: share ? "grid" : "base" };
    drawn.push(shape("line", line));
    const label = { x: inset - 6, y: y(most * share) + 4, "text-anchor": "end" };
    drawn.push(shape("text", label, share ? unit(most * share) : "0"));
  }
  drawn.push(shape("text", { x: inset, y: height - 4 }, SECONDS / 60 + " min ago"));
  drawn.push(shape("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, "now"));
  series.forEach(([name, style], index) => {
    const start = inset + index * 130;
    drawn.push(shape("line", { x1: start, x2: start + 16, y1: 9, y2: 9, class: "swatch " + style }));
    drawn.push(shape("text", { x: start + 22, y: 13 }, name));
    let path = "";
    let before = false;
    for (const [time, value] of values[index]) {
      const seen = value !== null && x(time) >= inset;
      if (seen) path += `${before ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
      before = seen;
    }
    drawn.push(shape("path", { d: path || "M0 0", class: "line " + style }));
  });
  byId(id).setAttribute("viewBox", `0 0 ${width} ${height}`);
  byId(id).replaceChildren(...drawn);
}

// ---- what an answer says ----

const sum = (counts) => Object.values(counts ?? {}).reduce((total, value) => total + value, 0);

function rate(value) {
  const [before, now] = past.slice(-2);
  if (!before || !now) return null;
  const [from, to] = [value(before), value(now)];
  return from === undefined || to === undefined ? null : Math.max(0, to - from) / ((now.at - before.at) / 1000);
}

function entryOf(stats, text) {
  const totals = stats.totals;
  const entry = { at: performance.now(), stats, histograms: histograms(text), rates: {}, quantiles: {} };
  const before = past.at(-1);
  past.push(entry);
  while (past.length > 1 && entry.at - past[0].at > SECONDS * 1000) past.shift();
  for (const [format] of FORMATS) {
    for (const what of ["frames", "bytes"]) {
      entry.rates[format + what] = totals ? rate((one) => at(one.stats, `totals.formats.${format}.${what}`)) : null;
    }
    entry.rates[format] = totals ? totals.formats[format].connections : null;
  }
  for (const name of ["shard", "last"]) {
    entry.quantiles[name] = [0.5, 0.99].map((wanted) => quantile(entry.histograms[name], before?.histograms[name], wanted));
  }
  return entry;
}

function health(stats, slow) {
  const said = [];
  const silent = stats.shards.filter((shard) => shard.state !== "ok").map((shard) => shard.shard);
  if (silent.length > 0) said.push(["bad", "Shards do not answer:", silent.join(", ")]);
  const perSecond = (path) => rate((entry) => at(entry.stats, path)) ?? 0;
  for (const reason of ["full", "behind", "memory", "busy", "draining"]) {
    const refused = perSecond("hub.refused." + reason);
    if (refused > 0) said.push(["bad", "Publishers are refused:", `${count(refused)} per second, ${reason}`]);
    const clients = perSecond("totals.refused." + reason);
    if (clients > 0) said.push(["bad", "Publishes of clients are refused:", `${count(clients)} per second, ${reason}`]);
  }
  const full = perSecond("totals.closed.full") + perSecond("totals.closed.memory");
  if (full > 0) said.push(["bad", "No room for subscribers:", `${count(full)} turned away per second`]);
  if (perSecond("totals.accept_failures") > 0) said.push(["bad", "The kernel refuses connections.", ""]);
  const share = stats.hub.memory.bytes / stats.hub.memory.bytes_max;
  if (share > 0.9) said.push(["warning", "Memory is short:", `${Math.round(share * 100)} % is in use`]);
  const process = stats.hub.process;
  const measures = { histories: "histories are shorter", newcomers: "newcomers are refused", publishers: "newcomers and publishers are refused" };
  if (process.pressure !== "none") {
    const kind = process.pressure === "histories" ? "warning" : "bad";
    said.push([kind, "The process nears its ceiling of memory:", measures[process.pressure]]);
  }
  const cut = perSecond("totals.closed.stalled") + perSecond("totals.closed.overrun");
  if (cut > 0) said.push(["warning", "Slow subscribers are hung up on:", `${count(cut)} per second`]);
  if (said.length === 0) {
    const waiting = FORMATS.reduce((total, [format]) => total + (at(stats, `totals.formats.${format}.sends_in_flight`) ?? 0), 0);
    const slowest = slow[0] ? `${waiting === 1 ? "" : ", the oldest"} for ${seconds(slow[0].seconds)}` : "";
    const wait = waiting === 1 ? "1 send waits for its socket" : `${grouped(waiting)} sends wait for their sockets`;
    said.push(["good", "It is well.", waiting > 0 ? `${wait}${slowest}.` : "Nobody is slow."]);
  }
  tell(said);
}

// Only what has changed, so that it is not read out again and again.
function tell(said) {
  const text = JSON.stringify(said);
  if (byId("health").dataset.said === text) return;
  byId("health").dataset.said = text;
  byId("health").replaceChildren(
    ...said.map(([kind, what, more]) => element("p", { class: "notice " + kind }, element("strong", null, what), more)),
  );
}

function reasons(id, path, nothing) {
  const counts = at(past.at(-1).stats, path);
  const list = Object.entries(counts ?? {}).filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
  rows(
    id,
    list.map(([reason, value]) => [
      head(reason),
      cell(count(rate((entry) => at(entry.stats, `${path}.${reason}`)) ?? 0)),
      cell(element("data", { value, "data-path": `${path}.${reason}` }, grouped(value))),
    ]),
    3,
    counts ? nothing : "not known: a shard does not answer",
  );
}

function latencies(stats) {
  const all = at(stats, "totals.latency_us");
  const list = [["a shard", "intake_to_shard"], ["last subscriber", "intake_to_last"]];
  for (const [format, name] of FORMATS) list.push(["written, " + name, "intake_to_written." + format]);
  rows(
    "latencies",
    all ? list.map(([name, path]) => [
      head(name),
      ...["p50", "p90", "p99", "p999", "max"].map((what) => {
        const value = at(all, `${path}.${what}`);
        const where = `totals.latency_us.${path}.${what}`;
        return cell(element("data", { value, "data-path": where }, seconds(value / 1e6)));
      }),
    ]) : [],
    6,
    "not known: a shard does not answer",
  );
}

function bounds(stats, text) {
  const sample = (name) => {
    const found = [...text.matchAll(new RegExp(`^${name} ([0-9.e+]+)$`, "gm"))].map((one) => Number(one[1]));
    return found.length > 0 ? Math.max(...found) : null;
  };
  const limit = (name) => sample(`fanwave_limit_bytes\\{limit="${name}"\\}`);
  const list = [
    ["the process, its sockets included", stats.hub.process.bytes, stats.hub.process.bytes_max, bytes],
    ["events with their frames", stats.hub.memory.bytes, stats.hub.memory.bytes_max, bytes, "hub.memory.bytes"],
    ["the hub's queue", stats.hub.queue.bytes, limit("hub_queue_bytes_max"), bytes, "hub.queue.bytes"],
    ["batches of slow sends, fullest shard", sample("fanwave_pinned_bytes\\{.*\\}"), limit("pinned_bytes_max"), bytes],
    ["subscribers, fullest shard", Math.max(0, ...stats.shards.map((shard) => FORMATS.reduce((total, [format]) => total + (shard.formats?.[format].connections ?? 0), 0))), sample("fanwave_subscribers_max\\{.*\\}"), grouped],
  ];
  rows("bounds", list.filter(([, now, most]) => now !== null && most !== null).map(([name, now, most, unit, path]) => {
    const share = element("meter", { min: 0, max: 1, high: 0.9, optimum: 0, value: most > 0 ? now / most : 0, "aria-label": name });
    const value = element("data", path ? { value: now, "data-path": path } : { value: now }, unit(now));
    return [head(name), cell(value), cell(unit(most)), left(share, " " + (most > 0 ? (now / most * 100).toFixed(1) : 0) + " %")];
  }), 4, "");
}

// The colour of a protocol, and its name for those who do not see it.
function protocol(name, style) {
  return element("span", { class: "key " + style, role: "img", "aria-label": name, title: name });
}

function slowest(list) {
  const keys = Object.fromEntries(FORMATS.map(([format, name, style]) => [format, [name, style]]));
  rows("slowest", list.slice(0, 16).map((one) => [
    head(protocol(...keys[one.format]), one.peer),
    cell(figure(one.seconds, seconds(one.seconds))),
    cell(figure(one.lag_events)),
    cell(grouped(one.shard)),
    element("td", { class: "left topic" }, one.topics.join(", ") + (one.more_topics > 0 ? ` and ${one.more_topics} more` : "")),
  ]), 5, "No send waits for its socket.");
}

function shards(stats) {
  rows("shards", stats.shards.map((shard) => [
    head(String(shard.shard)),
    cell(shard.cpu ?? "–"),
    left(shard.state),
    ...["connections", "queue", "events", "enters", "sleeps"].map((name) => cell(name in shard ? figure(shard[name]) : "–")),
  ]), 8, "");
  const ring = stats.egress;
  byId("ring").textContent = ring ? ring.ring === undefined ? String(ring) : describe(ring) : "";
}

// Which ring carries the bytes, why, and what helps where it is not the best.
function describe(ring) {
  const parts = [`Ring: ${ring.ring}` + (ring.sockets ? `, ${ring.sockets} descriptors` : "")];
  for (const what of ["why", "cost", "remedy"]) if (ring[what]) parts.push(ring[what]);
  return parts.join("; ") + ".";
}

function topics(answer) {
  const before = topicsBefore;
  topicsBefore = { at: performance.now(), published: new Map() };
  const list = answer.topics.map((one) => {
    const published = one.published ?? { events: 0, bytes: 0 };
    topicsBefore.published.set(one.topic, published);
    const then = before?.published.get(one.topic);
    const passed = before ? (topicsBefore.at - before.at) / 1000 : 1;
    const per = (what) => before ? Math.max(0, published[what] - (then?.[what] ?? 0)) / passed : 0;
    return { ...one, events: per("events"), bytes: per("bytes"), all: published.bytes };
  });
  list.sort((a, b) => b.bytes - a.bytes || b.all - a.all);
  byId("topics-caption").textContent = "Topics by traffic" + (answer.next ? `, of the first ${grouped(TOPICS_ASKED)} by name` : "");
  rows("topics", list.slice(0, TOPICS_SHOWN).map((one) => [
    element("td", { class: "left topic" }, one.topic),
    cell(count(one.events)),
    cell(bytes(one.bytes)),
    cell(figure(one.subscribers.sse)),
    cell(figure(one.subscribers.websocket)),
  ]), 5, "Nobody has published or subscribed yet.");
}

function show(stats, slow, text) {
  const entry = entryOf(stats, text);
  const now = (what) => {
    const rates = FORMATS.map(([format]) => entry.rates[format + what]);
    return rates.includes(null) ? null : rates.reduce((total, value) => total + value, 0);
  };
  byId("about").textContent = `${stats.version}, up ${duration(stats.uptime_ms / 1000)}, epoch ${stats.epoch}`;
  for (const found of document.querySelectorAll("data[data-path]")) {
    const value = at(stats, found.dataset.path);
    found.value = value ?? "";
    if (!found.closest("tbody")) found.textContent = value === undefined ? "–" : grouped(value);
  }
  byId("frames-rate").textContent = now("frames") === null ? "–" : count(now("frames"));
  byId("bytes-rate").textContent = now("bytes") === null ? "–" : bytes(now("bytes"));
  byId("shard-now").textContent = seconds(entry.quantiles.shard[1]);
  byId("last-now").textContent = seconds(entry.quantiles.last[1]);
  byId("slow-now").textContent = slow[0] ? seconds(slow[0].seconds) : "none";
  health(stats, slow);
  for (const name of ["shard", "last"]) {
    chart(name + "-chart", [["p50", "s2", (one) => one.quantiles[name][0]], ["p99", "s3", (one) => one.quantiles[name][1]]], seconds);
  }
  const both = (what) => FORMATS.map(([format, name, style]) => [name, style, (one) => one.rates[format + what] ?? null]);
  chart("frames-chart", both("frames"), count);
  chart("bytes-chart", both("bytes"), bytes);
  chart("subscribers-chart", both(""), count);
  latencies(stats);
  slowest(slow);
  reasons("refused", "hub.refused", "Nobody was refused.");
  reasons("clients-refused", "totals.refused", "None was refused.");
  reasons("closed", "totals.closed", "None yet.");
  bounds(stats, text);
  shards(stats);
}

function duration(value) {
  if (value >= 172800) return Math.floor(value / 86400) + " days";
  if (value >= 7200) return Math.floor(value / 3600) + " hours";
  if (value >= 120) return Math.floor(value / 60) + " minutes";
  return Math.floor(value) + " s";
}

// ---- asking ----

async function ask(path) {
  const answer = await session.ask(path);
  if (!answer.ok) throw new Error(`${path} answers ${answer.status}`);
  return answer;
}

async function update() {
  try {
    const [stats, slow, text] = await Promise.all([
      ask("/stats").then((answer) => answer.json()),
      ask("/slow").then((answer) => answer.json()),
      ask("/metrics").then((answer) => answer.text()),
    ]);
    if (turn++ % 5 === 0 || topicsBefore?.published.size === 0) topics(await (await ask("/topics?limit=" + TOPICS_ASKED)).json());
    show(stats, slow.slow, text);
  } catch (error) {
    if (!session.isOpen) return tell([["warning", "This server wants its control token.", "Sign in to see how it is."]]);
    tell([["bad", "The server does not answer:", error.message]]);
  }
}

async function run() {
  if (!paused && !document.hidden && session.isOpen) await update();
  setTimeout(run, 1000);
}

byId("pause").addEventListener("click", () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  byId("pause").textContent = paused ? "Go on" : "Pause";
});
run();
