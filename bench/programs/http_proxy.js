// node's http-proxy in front of one backend: node http_proxy.js PORT BACKEND_PORT [CERTIFICATE_AND_KEY]
const [port, backend, pem] = process.argv.slice(2);
const proxy = require("http-proxy").createProxyServer({ target: `http://127.0.0.1:${backend}`, xfwd: true });
const certificate = pem && require("fs").readFileSync(pem);
const server = pem
  ? require("https").createServer({ cert: certificate, key: certificate })
  : require("http").createServer();
server.on("request", (request, response) => proxy.web(request, response));
server.on("upgrade", (request, socket, head) => {
  socket.on("error", () => socket.destroy()); // a client that resets must not end all the others
  proxy.ws(request, socket, head);
});
proxy.on("error", (error, request, socket) => socket.destroy());
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
