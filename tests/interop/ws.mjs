// npm's ws on Node.js: prints what it hears, one JSON line each, and closes after the text "bye".
//
// usage: node ws.mjs PLACE URL
import { createRequire } from 'node:module';

const [place, url] = process.argv.slice(2);
const WebSocket = createRequire(`${place}/`)('ws');
const say = (heard) => console.log(JSON.stringify(heard));

const socket = new WebSocket(url, ['chat', 'other']);
socket.on('open', () => {
  say({ open: socket.protocol });
  socket.ping('here?');
});
socket.on('pong', (payload) => say({ pong: payload.toString() }));
socket.on('message', (data, isBinary) => {
  say(isBinary ? { binary: data.toString('base64') } : { data: data.toString() });
  if (data.toString() === 'bye') socket.close(3001, 'done');
});
socket.on('close', (code) => say({ close: code }));
socket.on('error', (error) => say({ error: error.message }));
