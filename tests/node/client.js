// Opens one session with npm ws, and tells in one line of JSON what it saw.
//
//   node client.js URL MESSAGES [SUBPROTOCOLS]
//
// MESSAGES is a JSON list of texts, sent in order, each after the answer to the one before; SUBPROTOCOLS one, too.
// The CA of a wss URL comes in NODE_EXTRA_CA_CERTS. What is told: {"subprotocol", "extensions", "answers", "pong",
// "code", "reason"}, or {"status"} for an answer that is no 101.
"use strict";

const WebSocket = require("ws");

const [url, messages, subprotocols] = process.argv.slice(2);
const left = JSON.parse(messages);
const told = { subprotocol: "", extensions: "", answers: [], pong: "" };
const socket = new WebSocket(url, JSON.parse(subprotocols || "[]"), { perMessageDeflate: { threshold: 0 } });

function next() {
  if (left.length) socket.send(left.shift());
  else socket.ping("are you there");
}

socket.on("open", () => {
  told.subprotocol = socket.protocol;
  told.extensions = socket.extensions;
  next();
});
socket.on("message", (data, isBinary) => {
  told.answers.push(isBinary ? data.length : data.toString());
  next();
});
socket.on("pong", (data) => {
  told.pong = data.toString();
  socket.close(3001, "enough");
});
socket.on("close", (code, reason) => {
  console.log(JSON.stringify({ ...told, code, reason: reason.toString() }));
});
socket.on("unexpected-response", (request, response) => {
  console.log(JSON.stringify({ status: response.statusCode }));
  process.exit(0);
});
