// The shop's front: one page made of what the other modules answer. A module that is away leaves a gap, not an error.
const http = require('http');

const modules = {
  catalog: process.env.CATALOG_URL || 'http://catalog:8000/products',
  cart: process.env.CART_URL || 'http://cart:8000/cgi-bin/total?3+4+5',
  assets: process.env.ASSETS_URL || 'http://assets:8000/motto.txt',
};
let draining = false;

async function ask(url) {
  try {
    const answer = await fetch(url, { signal: AbortSignal.timeout(2000) });
    return answer.ok ? (await answer.text()).trim() : `answered ${answer.status}`;
  } catch (error) {
    return 'away';
  }
}

const server = http.createServer(async (request, response) => {
  if (request.url === '/ready') {
    response.statusCode = draining ? 503 : 200;
    return response.end();
  }
  const answers = await Promise.all(Object.values(modules).map(ask));
  if (draining) response.setHeader('Connection', 'close');
  response.setHeader('Content-Type', 'text/plain; charset=utf-8');
  response.end(['shop', ...Object.keys(modules).map((name, i) => `${name}: ${answers[i]}`)].join('\n') + '\n');
});

server.keepAliveTimeout = 75000;
server.headersTimeout = 76000;
server.listen(8000);

process.on('SIGTERM', () => {
  draining = true;
  setTimeout(() => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  }, 3000);
});
