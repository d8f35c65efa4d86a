// Runs before the page's own script. Knows nothing of the chat's contents.
(() => {
  // Language: the page follows navigator.language, the server our cookie. The switch in the header changes both.
  const cookie = document.cookie.match(/(?:^|; )tempera-lang=([\w-]+)/);
  const wanted = cookie ? cookie[1] : navigator.language || 'en-US';
  const language = wanted.startsWith('zh') ? 'zh-CN' : wanted;
  const keep = (tag) => { document.cookie = `tempera-lang=${tag};path=/;max-age=31536000;samesite=lax`; };
  Object.defineProperty(navigator, 'language', { get: () => language });
  document.documentElement.lang = language;
  keep(language);

  // Light or dark as the system says, until somebody chooses.
  if (!localStorage.getItem('vite-ui-theme')) localStorage.setItem('vite-ui-theme', 'system');

  document.addEventListener('click', (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const link = target?.closest('button, a');
    if (link && (link.matches('a[href="#language"]') || link.querySelector('a[href="#language"]'))) {
      event.preventDefault();
      event.stopPropagation();
      const lost = document.querySelector('[data-step-type]') && !location.pathname.includes('/thread/');
      if (lost && !confirm(language.startsWith('zh') ? '切换语言会清空当前对话，确定吗？' : 'Switching the language clears this chat. Go on?')) return;
      keep(language.startsWith('zh') ? 'en-US' : 'zh-CN');
      location.reload();
      return;
    }
    // Closing the parameters must not undo them, as Chainlit would: they apply as they are moved.
    const closing = target?.closest('#chat-settings-sidebar-title button, [role=dialog]:has(#confirm-sidebar) > button');
    if (closing) {
      event.preventDefault();
      event.stopPropagation();
      document.getElementById('confirm-sidebar').click();
    }
  }, true);

  // The parameters stand open where there is room for them.
  if (matchMedia('(min-width: 1100px)').matches) {
    const watch = new MutationObserver(() => {
      const gear = document.getElementById('chat-settings-header-button');
      if (gear) { watch.disconnect(); gear.click(); }
    });
    watch.observe(document.documentElement, { childList: true, subtree: true });
  }
})();
