// <tollkeeper-balance> and <tollkeeper-buy>: what is left, and buying more, inside an app's own page.
//
// Attributes of both: `token`, a short-lived token that the app's server made for this page (POST /api/tokens, with the
// page's origin; for buying with "buy": true); `lang`, else the page's. Of the balance: `refresh`, seconds between looks
// (30; at least 5). Without a token, or with one that is refused, the event `tollkeeper-token-needed` asks for one.
// `tollkeeper-balance` tells what was read, `tollkeeper-checkout` which payment page comes next (preventDefault() keeps
// this page). Looks: CSS variables --tollkeeper-* below, and the parts amount, unit, package, price, problem, retry.

const HOME = new URL(import.meta.url).origin;
const LEAST_SECONDS = 5;

const LOOKS = new CSSStyleSheet();
LOOKS.replaceSync(`
  :host { display: inline-block; color: var(--tollkeeper-color, inherit); font: var(--tollkeeper-font, inherit); }
  :host([hidden]) { display: none; }
  .amount { font-variant-numeric: tabular-nums; font-weight: var(--tollkeeper-weight, 600); }
  .unit { color: var(--tollkeeper-muted, inherit); }
  ul { display: flex; flex-wrap: wrap; gap: var(--tollkeeper-gap, 0.75rem); list-style: none; margin: 0; padding: 0; }
  button {
    font: inherit; cursor: pointer; padding: 0.6em 1em; text-align: start;
    color: var(--tollkeeper-button-color, #fff); background: var(--tollkeeper-button-background, #1f4fbf);
    border: 1px solid var(--tollkeeper-button-border, transparent); border-radius: var(--tollkeeper-radius, 0.4rem);
  }
  button:focus-visible { outline: 3px solid var(--tollkeeper-focus, #b45309); outline-offset: 2px; }
  button[disabled] { cursor: progress; opacity: 0.75; }
  .price { font-weight: 600; }
  .problem { color: var(--tollkeeper-problem, #b3261e); margin: 0; }
`);

function element(name, part, text = "") {
  const made = document.createElement(name);
  made.className = part;
  made.setAttribute("part", part);
  made.textContent = text;
  return made;
}

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

class Piece extends HTMLElement {
  static observedAttributes = ["token", "lang"];
  #turn = 0;

  constructor() {
    super();
    this.attachShadow({ mode: "open" }).adoptedStyleSheets = [LOOKS];
  }

  get token() {
    return this.getAttribute("token") ?? "";
  }

  set token(value) {
    this.setAttribute("token", value);
  }

  connectedCallback() {
    this.load();
  }

  disconnectedCallback() {
    this.#turn += 1;
  }

  attributeChangedCallback(_name, before, after) {
    if (this.isConnected && before !== after) this.load();
  }

  get language() {
    return this.closest("[lang]")?.lang || navigator.language;
  }

  number(value, options = {}) {
    try {
      return new Intl.NumberFormat(this.language, options).format(value);
    } catch {
      return new Intl.NumberFormat("en", options).format(value);
    }
  }

  async ask(path, body) {
    const options = { headers: { authorization: `Bearer ${this.token}` }, credentials: "omit", cache: "no-store" };
    if (body !== undefined) {
      options.method = "POST";
      options.body = JSON.stringify(body);
      options.headers["content-type"] = "application/json";
    }
    let answer, found;
    try {
      answer = await fetch(HOME + path, options);
      found = await answer.json();
    } catch {
      throw new Refused(0, "This cannot be loaded right now.");
    }
    if (!answer.ok) throw new Refused(answer.status, found.error?.message ?? "This cannot be loaded right now.");
    return found;
  }

  tell(name, detail, cancelable = false) {
    return this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true, cancelable }));
  }

  // Ask and show; what comes late, after a newer question or after it left the page, is not shown.
  async load() {
    const turn = (this.#turn += 1);
    if (!this.token) {
      this.tell("tollkeeper-token-needed", {});
      return;
    }
    this.shadowRoot.host.setAttribute("aria-busy", "true");
    try {
      const found = await this.ask(this.path);
      if (turn === this.#turn) this.show(found);
    } catch (refused) {
      if (turn === this.#turn) this.fail(refused);
    } finally {
      if (turn === this.#turn) this.removeAttribute("aria-busy");
    }
  }

  fail(refused) {
    const problem = element("p", "problem", refused.message);
    problem.setAttribute("role", "alert");
    const retry = element("button", "retry", "Try again");
    retry.type = "button";
    retry.addEventListener("click", () => this.load());
    this.shadowRoot.replaceChildren(problem, ...(refused.status === 401 || refused.status === 403 ? [] : [retry]));
    if (refused.status === 401) this.tell("tollkeeper-token-needed", {});
  }
}

class Balance extends Piece {
  static observedAttributes = [...Piece.observedAttributes, "refresh"];
  path = "/api/billing/balance";
  #timer = 0;
  #again = () => document.visibilityState === "visible" && this.load();

  connectedCallback() {
    super.connectedCallback();
    document.addEventListener("visibilitychange", this.#again);
    this.#wind();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    document.removeEventListener("visibilitychange", this.#again);
    clearInterval(this.#timer);
  }

  attributeChangedCallback(name, before, after) {
    if (name === "refresh") this.#wind();
    else super.attributeChangedCallback(name, before, after);
  }

  #wind() {
    clearInterval(this.#timer);
    const seconds = Math.max(LEAST_SECONDS, Number(this.getAttribute("refresh")) || 30);
    if (this.isConnected) this.#timer = setInterval(this.#again, seconds * 1000);
  }

  show(found) {
    const amount = element("span", "amount", this.number(found.availableCredits, { maximumFractionDigits: 2 }));
    const line = element("span", "balance");
    line.append(amount, " ", element("span", "unit", "credits"));
    this.shadowRoot.replaceChildren(line);
    this.tell("tollkeeper-balance", found);
  }
}

class Buy extends Piece {
  path = "/api/billing/packages";

  show({ packages, purchasesEnabled }) {
    if (!purchasesEnabled || packages.length === 0) {
      this.shadowRoot.replaceChildren(element("p", "unavailable", "Credits cannot be bought right now."));
      return;
    }
    const list = element("ul", "packages");
    for (const one of packages) {
      const button = element("button", "package");
      button.type = "button";
      const price = this.number(one.usd, { style: "currency", currency: "USD" });
      button.append(`${this.number(one.credits)} credits for `, element("span", "price", price));
      button.addEventListener("click", () => this.#buy(one.code, button));
      const row = document.createElement("li");
      row.append(button);
      list.append(row);
    }
    this.shadowRoot.replaceChildren(list);
  }

  async #buy(code, button) {
    for (const other of this.shadowRoot.querySelectorAll("button")) other.disabled = true;
    button.setAttribute("aria-busy", "true");
    try {
      const purchase = await this.ask("/api/billing/checkout", { packageCode: code });
      if (this.tell("tollkeeper-checkout", purchase, true)) window.location.assign(purchase.url);
      else this.load();
    } catch (refused) {
      this.fail(refused);
    }
  }
}

customElements.define("tollkeeper-balance", Balance);
customElements.define("tollkeeper-buy", Buy);
