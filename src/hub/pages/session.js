// Who is at the page: the control token, where the server wants one. It is kept for this tab alone
// (sessionStorage) and sent as `Authorization` by our own fetch. A cookie would go by itself, also to
// other ports of this host, and where a foreign page wants it to.
"use strict";

const session = (() => {
  const KEY = "fanwave-control-token";
  const form = document.getElementById("sign-in");
  const field = document.getElementById("token");
  const said = document.getElementById("sign-in-said");
  const leave = document.getElementById("sign-out");
  let token = sessionStorage.getItem(KEY);

  const own = { isOpen: true, needsToken: token !== null, ask };

  // Asks the control plane; an answer of 401 closes the session.
  async function ask(path, options = {}) {
    const headers = { ...options.headers };
    if (token) headers.Authorization = "Bearer " + token;
    const answer = await fetch(path, { cache: "no-store", ...options, headers });
    if (answer.status === 401) {
      close();
      throw new Error("the control token is needed");
    }
    return answer;
  }

  function close() {
    sessionStorage.removeItem(KEY);
    token = null;
    own.isOpen = false;
    own.needsToken = true;
    document.body.classList.add("signed-out");
    form.hidden = false;
    leave.hidden = true;
  }

  async function signIn(event) {
    event.preventDefault();
    said.textContent = "";
    token = field.value.trim();
    try {
      await ask("/topics?limit=1");
    } catch {
      close();
      said.textContent = "The server does not take this token.";
      return field.focus();
    }
    sessionStorage.setItem(KEY, token);
    field.value = "";
    document.body.classList.remove("signed-out");
    form.hidden = true;
    leave.hidden = false;
    own.isOpen = true;
    dispatchEvent(new Event("signed-in"));
  }

  form.addEventListener("submit", signIn);
  leave.addEventListener("click", () => {
    close();
    location.reload();
  });
  leave.hidden = !token;
  return own;
})();
