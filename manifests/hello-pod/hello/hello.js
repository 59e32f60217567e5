const http = require('http');
const server = http.createServer((request, response) => response.end('Hello Kubernetes!\n'));
server.listen(8000);
