// Keeps the page up to date: when a name on the stream concerns it, the page is fetched again and its main part
// replaced. Markup always comes from the server, which escapes it.
'use strict';

const live = document.getElementById('live');
let timer = 0;
let loading = false;
let again = false;

async function reload() {
  if (loading) {
    again = true;
    return;
  }
  loading = true;
  try {
    const answer = await fetch(location.href, { credentials: 'same-origin', signal: AbortSignal.timeout(10000) });
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    const fresh = page.getElementById('main');
    if (!answer.ok || !fresh) {
      live.textContent = answer.status === 404 ? 'Gone' : 'Cannot be read: ' + answer.status;
      return;
    }
    const main = document.getElementById('main');
    for (const open of main.querySelectorAll('details[open]')) {
      const same = fresh.querySelector(`details[data-id="${CSS.escape(open.dataset.id)}"]`);
      if (same) same.open = true;
    }
    document.title = page.title;
    main.replaceChildren(...fresh.childNodes);
    live.textContent = 'Live';
  } catch {
    live.textContent = 'Not connected';
  } finally {
    loading = false;
    if (again) {
      again = false;
      soon();
    }
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(reload, 150);
}

const stream = new EventSource('/events');
stream.addEventListener('open', () => {
  live.textContent = 'Live';
  soon(); // what changed while nobody listened
});
stream.addEventListener('error', () => { live.textContent = 'Not connected'; });
stream.addEventListener('change', (event) => {
  const key = document.getElementById('main').dataset.key;
  if (!key || key === event.data) soon();
});

// Pods start, stop and restart without anything being deployed, and nobody watches them for a page.
setInterval(() => { if (document.getElementById('main').dataset.key && !document.hidden) soon(); }, 5000);
