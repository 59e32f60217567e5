#!/bin/sh
# A process with number 1 ignores SIGTERM unless it says what to do about it. httpd serves each request in a child of
# its own, which finishes by itself; so only the listener is stopped, and the children get a moment.
httpd -f -p 8000 -h /www &
listener=$!
trap 'kill "$listener"; sleep 2; exit 0' TERM
wait "$listener"
