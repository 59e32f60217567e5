const http = require('http');

const text = 'Hello Kubernetes!';
const drainMilliseconds = 3000;
let draining = false;

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://hello');
  if (url.pathname === '/ready') {
    response.statusCode = draining ? 503 : 200;
    return response.end();
  }
  // ?wait=10 makes a request that outlives a step of a rollout
  const seconds = Math.min(Number(url.searchParams.get('wait')) || 0, 30);
  setTimeout(() => {
    if (draining) response.setHeader('Connection', 'close'); // sends a kept-alive client to another pod
    response.end(text + '\n');
  }, seconds * 1000);
});

server.keepAliveTimeout = 75000; // longer than clients keep an idle connection: they close first
server.headersTimeout = 76000;
server.listen(8000);

// Kubernetes sends SIGTERM when preStop is over, so nothing new arrives any more. Requests on kept-alive connections
// still do: answer them with "Connection: close" for a while, then finish what is running and exit.
process.on('SIGTERM', () => {
  draining = true;
  setTimeout(() => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  }, drainMilliseconds);
});
