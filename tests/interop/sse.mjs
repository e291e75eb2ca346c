// An EventSource of npm on Node.js: prints what it hears, one JSON line each, until it is killed.
//
// usage: node sse.mjs PLACE eventsource|eventsource-2|event-source-polyfill URL
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [place, name, url] = process.argv.slice(2);
const entry = createRequire(`${place}/`).resolve(name);
const module = await import(pathToFileURL(entry));
const EventSource = module.EventSource ?? module.default.EventSourcePolyfill ?? module.default;
const say = (heard) => console.log(JSON.stringify(heard));

const source = new EventSource(url);
source.onopen = () => say({ open: null });
source.onerror = () => say({ error: source.readyState });
source.onmessage = ({ data, lastEventId }) => say({ data, id: lastEventId });
source.addEventListener('named', ({ data, lastEventId }) => say({ data, id: lastEventId, name: 'named' }));
source.addEventListener('fanwave-gap', ({ data }) => say({ gap: data }));
