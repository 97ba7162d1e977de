/**
 * The JavaScript client of ledgerd: one file, no dependencies, for browsers and Node.
 *
 *     import { connect } from "./ledgerd.js";
 *
 *     const client = await connect("ws://127.0.0.1:8710/", { token });
 *     await client.call("transfer", { source_account_id: 7, destination_account_id: 8, amount: "10.00" });
 *     for await (const event of client.subscribe("balances", { account_ids: [7] })) console.log(event);
 *
 * Rules of this file:
 *
 * - **The same command is sent again only with the same id.** A money command without a transaction_id gets a UUIDv7
 *   before it is first sent. After a lost connection, unanswered money commands and reads go out again as the same
 *   bytes, in their first order, before anything newer. Everything else is not repeated blindly: OutcomeUnknown.
 * - **Answers that may pass are asked again**, with the same id, until `callMs` is over; so is money whose outcome the
 *   daemon does not know. Refusals such as insufficient_funds are answers: they are thrown at once.
 * - **applied: false is only believed for the sending it answers.** If an earlier sending was lost, a refusal is thrown
 *   with `applied` null: the earlier one may still be carried out.
 * - **A feed proves that it is complete** or throws FeedGap. A gap is never mended: money was shown wrongly.
 * - **Money is text.** No amount ever becomes a Number; sums are made of BigInts.
 * - What arrives is handled before the next message is looked at: an event may follow its subscription's reply at once.
 */

/** What `connect` takes besides the token. Times in milliseconds; delays double from least to most, with jitter. */
const DEFAULTS = {
  connectTimeoutMs: 10_000,
  firstConnectMs: 0, // 0: one attempt; a daemon that is not there is said at once
  reconnectMs: 60_000, // without a useful connection for so long, the client ends
  callMs: 20_000,
  delayMinMs: 100,
  delayMaxMs: 5_000,
  silenceMs: 90_000, // a connection on which nothing arrives for so long is dead
  eventsMax: 4_096, // of one feed, arrived and not read; beyond that it lets go and resumes later
};

/** Messages sent and not answered. The daemon stops reading at about as many. */
const IN_FLIGHT_MAX = 256;
/** Sendings of one command: one that kills every connection must not do so for ever. */
const SENDS_MAX = 10;
/** Commands whose id (see idName) is chosen here if the caller did not. */
const MONEY = new Set([
  "credit", "debit", "transfer", "hold_place", "hold_capture", "hold_release", "transaction_reverse",
  "transaction_batch", "account_set_limit", "account_freeze", "account_unfreeze", "account_close",
  "wallet_bet", "wallet_win", "wallet_rollback", "advance_request", "advance_repay",
]);
/** Refusals that say nothing about the command. */
const PASSING = new Set(["rate_limited", "overloaded", "timeout", "shutting_down", "unavailable"]);
/** On the channel of monitors, unless the caller chose: where few events come, they tell where to resume. */
const HEARTBEAT_MS = 10_000;
const EVENTS = new Set(["start", "live", "update", "transaction", "monitor", "advance", "account_added", "heartbeat"]);

const now = () => performance.now();
const isRead = (method) =>
  /_(get|list|report|balance)$|^system_/.test(method) || method === "session_status" || method === "rpc.discover";
/** Whether the same bytes would end the same way. */
const isFinal = (code) => [1002, 1003, 1007, 1009, 1010].includes(code) || (code >= 4400 && code <= 4499);

// -- errors -----------------------------------------------------------------------------------------------------------

/** The daemon refuses. `name` is the stable string ("insufficient_funds"), `code` its number (3001). */
export class LedgerError extends Error {
  /** @param {{code?: number, message?: string, data?: Record<string, any>}} error the JSON-RPC error object */
  constructor(error) {
    const { code: name, retryable, applied, detail, ...data } = error.data ?? {};
    super(detail ?? error.message ?? "The daemon gave no reason.");
    this.name = name ?? "unknown_error";
    this.code = error.code ?? 0;
    /** The same bytes may succeed later. */
    this.retryable = retryable === true;
    /** false: nothing happened and nothing will. null: unknown; send the same transaction_id again, or cancel it.
     * @type {false | null} */
    this.applied = applied === false || applied === undefined ? false : null;
    /** What else the daemon said, such as `available`, `errors` or `attempt_id`. */
    this.data = data;
  }
}

/** The connection was lost before the answer came, and the command was not sent again. Of money, send the same
 * `transactionId` again or cancel it; of anything else (`transactionId` null), look whether it happened. */
export class OutcomeUnknown extends Error {
  constructor(method, transactionId) {
    super(`the outcome of ${method} is unknown: the connection was lost before its answer came`);
    this.name = "OutcomeUnknown";
    this.method = method;
    this.transactionId = transactionId;
  }
}

/** The daemon could not be reached within the time allowed. */
export class CannotConnect extends Error {
  name = "CannotConnect";
}

/** The connection ended for a reason that reconnecting would not mend. `code` is the WebSocket's close code. */
export class ConnectionEnded extends Error {
  constructor(code, reason) {
    super(`the connection ended (${code}): ${reason}`);
    this.name = "ConnectionEnded";
    this.code = code;
  }
}

/** A feed left out, repeated or misstated something about an account. */
export class FeedGap extends Error {
  constructor(accountId, what, expected, received) {
    super(`account ${accountId}: ${what}; ${expected} was due and ${received} came`);
    this.name = "FeedGap";
    this.accountId = accountId;
    this.expected = expected;
    this.received = received;
  }
}

/** A request that belongs to one connection went away with it. */
class Lost extends Error {}

// -- where a subscriber stands ----------------------------------------------------------------------------------------

/** Decimal text as a whole number of the currency's smallest unit; texts of one currency have equally many decimals. */
const minor = (text) => BigInt(text.replace(".", ""));

/** An epoch, and of every followed account what was last said about it. All that judges a feed is here. */
class Cursor {
  #said = new Map(); // by account, its balance and what is held, as last told
  #promised = new Map(); // where a resumed account stood as the feed began, reached before `live`
  #partly = new Map(); // of a version that crosses several monitors, those that came
  #promisedEvents = new Map(); // the same of resumed advances
  #starting = false;

  constructor(since, everything, channel = "balances") {
    this.epoch = since?.epoch ?? null;
    this.position = since?.position ?? null; // of a feed of everything, in the order of commits
    /** @type {Map<number, number>} */
    this.versions = new Map(Object.entries(since?.versions ?? {}).map(([id, version]) => [Number(id), version]));
    this.everything = everything;
    this.crossings = channel === "monitors"; // where most versions are not shown
    /** The last event of each; null on every other channel. @type {Map<string, number> | null} */
    this.advances = channel === "advances" ? new Map(Object.entries(since?.advances ?? {})) : null;
  }

  /** The `since` option that resumes here; null when there is nothing to resume from. */
  since() {
    const { epoch, position, versions, advances } = this;
    if (advances !== null) return epoch === null ? null : { epoch, advances: Object.fromEntries(advances) };
    if (epoch === null || (this.everything ? position === null : versions.size === 0)) return null;
    return this.everything ? { epoch, position } : { epoch, versions: Object.fromEntries(versions) };
  }

  /** Move on by one event; false if it is a repetition, to be dropped. Throws FeedGap. */
  apply(event) {
    if (event.type === "update") return this.#steps([event], event);
    if (event.type === "transaction") {
      // Entries of accounts that are not followed have no place in the cursor, and must not get one.
      const followed = ({ account_id: id }) => this.everything || this.versions.has(id);
      return this.#steps(event.transaction.entries.filter(followed), event);
    }
    if (event.type === "start") this.#start(event);
    else if (event.type === "live") this.#live();
    else if (event.type === "account_added") this.#stand(event.account);
    else if (event.type === "monitor") return this.#cross(event);
    else if (event.type === "advance") this.#happen(event);
    else if (event.type === "heartbeat") this.#beat(event);
    return true;
  }

  #start({ epoch, accounts, advances = [], more, position, reason }) {
    if (!this.#starting) this.#promised.clear();
    if (!this.#starting) this.#promisedEvents.clear();
    if (!this.#starting && epoch !== this.epoch) this.#partly.clear();
    if (!this.#starting && epoch !== this.epoch) this.advances?.clear();
    // A feed of everything that did not resume begins where the daemon is: nothing older can be compared.
    if (this.everything && (reason || this.since() === null)) this.versions.clear();
    this.position = position ?? this.position;
    for (const account of accounts) {
      this.#promised.delete(account.account_id);
      if (account.from === "resumed") this.#promise(account);
      else this.#stand(account);
    }
    for (const advance of advances) this.#beginAdvance(advance);
    this.epoch = epoch;
    this.#starting = more === true;
  }

  #beginAdvance(advance) {
    const { advance_id: id, account_id: account, event } = advance;
    const have = this.advances.get(id) ?? 0;
    if (advance.from !== "resumed") this.advances.set(id, event);
    else if (event < have) throw new FeedGap(account, "an advance resumed where this client never was", have, event);
    else this.#promisedEvents.set(id, advance);
  }

  /** The next event of an advance; the first of one that was not there at the start. Nothing follows `completed`. */
  #happen({ advance_id: id, account_id: account, event, what }) {
    const last = this.advances.get(id) ?? 0;
    if (event !== last + 1) {
      const wrong = event <= last ? "an event of an advance came again" : "an event of an advance is missing";
      throw new FeedGap(account, wrong, last + 1, event);
    }
    this.advances.set(id, event);
    if (what !== "completed") return;
    this.advances.delete(id);
    this.#promisedEvents.delete(id);
  }

  #promise(account) {
    const { account_id: id, version } = account;
    const have = this.versions.get(id);
    if (have === undefined || version < have)
      throw new FeedGap(id, "resumed where this client never was", have ?? 0, version);
    this.#promised.set(id, account);
    if (version === have && this.#said.has(id)) agree(this.#said.get(id), account);
  }

  #stand(account) {
    const { account_id: id, version } = account;
    // Beyond 2^53 JSON.parse has rounded already, and two accounts could look like one.
    if (!Number.isSafeInteger(id) || !Number.isSafeInteger(version))
      throw new RangeError(`account ${id}, version ${version}: too large to be exact as a Number`);
    this.versions.set(id, version);
    this.#said.set(id, { account_id: id, balance: account.balance, held: account.held });
  }

  #live() {
    for (const [id, { account_id: account, event }] of this.#promisedEvents) {
      const have = this.advances.get(id) ?? 0;
      if (have < event) throw new FeedGap(account, "live before all was caught up", have + 1, event + 1);
    }
    this.#promisedEvents.clear();
    for (const [id, { version }] of this.#promised) {
      const have = this.versions.get(id) ?? 0;
      if (this.crossings) this.versions.set(id, Math.max(have, version));
      else if (have < version) throw new FeedGap(id, "live before all was caught up", have + 1, version + 1);
    }
    this.#promised.clear();
  }

  /** Resuming a feed of everything may repeat what came before, whole transactions at a time: no gap. */
  #steps(changes, { skipped = 0, position }) {
    const came = ({ account_id: id, version }) => version <= (this.versions.get(id) ?? -1);
    const repeated = this.everything && changes.some(came);
    if (!repeated) for (const change of changes) this.#step(change, skipped);
    this.position = position ?? this.position;
    return !repeated;
  }

  /** The next version of an account. `skipped` versions were not shown, and their changes are not in this one's. */
  #step(change, skipped) {
    const { account_id: id, version } = change;
    const last = this.versions.get(id);
    if (last === undefined && !this.everything) throw new FeedGap(id, "an update came before its start", 0, version);
    if (last !== undefined && version !== last + skipped + 1) {
      const what = version <= last ? "a version came again" : "a version is missing";
      throw new FeedGap(id, what, last + skipped + 1, version);
    }
    const before = skipped === 0 && last !== undefined ? this.#said.get(id) : undefined;
    for (const kind of before ? ["balance", "held"] : []) {
      const due = minor(before[kind]) + minor(change[`${kind}_change`]);
      if (due !== minor(change[kind])) throw new FeedGap(id, `${kind} does not add up`, due, minor(change[kind]));
    }
    this.#stand(change);
    const promised = this.#promised.get(id);
    if (promised?.version === version) agree(promised, change);
  }

  /** A version that crosses several monitors comes in several events, all but the last marked `more`: only then has it
   * been delivered. What came of it before a connection was lost comes again. */
  #cross({ account_id: id, monitor_id: monitor, version, more, position }) {
    const last = this.versions.get(id);
    if (last === undefined && !this.everything) throw new FeedGap(id, "a crossing came before its start", 0, version);
    this.position = position ?? this.position;
    if (last !== undefined && version <= last) {
      if (this.everything) return false;
      throw new FeedGap(id, "a crossing came again", last + 1, version);
    }
    const partly = this.#partly.get(id);
    const came = partly?.version === version ? partly.came : new Set();
    const repeated = came.has(monitor);
    if (more) this.#partly.set(id, { version, came: came.add(monitor) });
    else {
      this.#partly.delete(id);
      this.versions.set(id, version);
    }
    return !repeated;
  }

  /** A heartbeat tells what was delivered: that must be what has arrived, or on the channel of monitors was silent. */
  #beat({ versions, position }) {
    this.position = position ?? this.position;
    for (const [account, version] of Object.entries(versions)) {
      const have = this.versions.get(Number(account));
      if (this.crossings && have !== undefined) this.versions.set(Number(account), Math.max(have, version));
      else if (have !== version) throw new FeedGap(Number(account), "an update was lost before a heartbeat", version, have);
    }
  }
}

/** Two statements about one version of an account must be the same. */
function agree(one, other) {
  for (const kind of ["balance", "held"])
    if (minor(one[kind]) !== minor(other[kind]))
      throw new FeedGap(one.account_id, `one version with two values of ${kind}`, one[kind], other[kind]);
}

// -- one followed feed ------------------------------------------------------------------------------------------------

/**
 * The events of one subscription, as an async iterator; made by `Client.subscribe`, read by one reader. It outlives
 * connections: it resumes where it was, and says so by another `start` whose accounts are `resumed`. When `eventsMax`
 * events wait unread it lets go of its subscription, and resumes once they have been read: memory stays bounded, other
 * calls are not slowed, and nothing is lost, because the daemon's table remembers.
 */
export class Feed {
  #channel;
  #options;
  #eventsMax;
  #attach;
  #letGo;
  #arrived;
  #read;
  #queue = [];
  #failure = null;
  #waiting = [];
  /** @internal */ subscription = null;
  /** @internal */ asked = false;
  /** @internal */ resting = false; // after a refusal that may pass
  /** @internal */ paused = false; // until what has arrived is read
  /** @internal */ refusedSince = null;
  /** Whether `close` was called. */
  closed = false;

  /** @internal @param {Record<string, any>} options */
  constructor(channel, options, eventsMax, attach, letGo) {
    const { since, ...kept } = options;
    this.#channel = channel;
    const crossings = channel === "monitors";
    this.#options = crossings ? { heartbeat_ms: HEARTBEAT_MS, ...kept } : kept;
    this.#eventsMax = eventsMax;
    this.#attach = attach;
    this.#letGo = letGo;
    this.#arrived = new Cursor(since, options.all === true, channel);
    this.#read = new Cursor(since, options.all === true, channel);
  }

  /** `{epoch, versions}` of what has been read (of `all` `{epoch, position}`, of advances `{epoch, advances}`); null
   * before the first event. Store it, and give it as `since` in a later run. */
  get position() {
    return this.#read.since();
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  /** The next event, however many reconnections it takes. Throws FeedGap, LedgerError (the daemon refuses or ended the
   * subscription), ConnectionEnded or CannotConnect. */
  async next() {
    while (!this.closed && this.#queue.length === 0) {
      if (this.#failure) throw this.#failure;
      this.paused = false;
      this.#attach(this);
      await new Promise((resolve) => this.#waiting.push(resolve));
    }
    if (this.closed) return { done: true, value: undefined };
    const event = this.#queue.shift();
    this.#read.apply(event);
    return { done: false, value: event };
  }

  /** What leaving a `for await` loop calls. */
  async return() {
    await this.close();
    return { done: true, value: undefined };
  }

  /** Unsubscribe. From this call on nothing is delivered; it resolves when the daemon has nothing more to send. */
  async close() {
    const { subscription } = this;
    this.closed = true;
    this.#queue = [];
    this.detach();
    await this.#letGo(this, subscription);
  }

  /** Whether this is not the moment to subscribe. @internal */
  get busy() {
    const over = this.closed || this.#failure !== null;
    return over || this.paused || this.resting || this.asked || this.subscription !== null;
  }

  /** Give every event to its handler, one after the other. @internal */
  async pump(handlers) {
    try {
      for await (const event of this) {
        const name = event.type.replace(/(?:^|_)([a-z])/g, (_, letter) => letter.toUpperCase());
        await handlers[`on${name}`]?.(event);
      }
    } catch (error) {
      if (!handlers.onError) throw error; // as an unhandled rejection: a gap must not pass in silence
      handlers.onError(error);
    }
  }

  /** Parameters of the subscription that continues after what has arrived. @internal */
  params() {
    const since = this.#arrived.since();
    return { channel: this.#channel, options: since ? { ...this.#options, since } : this.#options };
  }

  /** The daemon has answered: events of this subscription follow. @internal */
  attached(subscription) {
    this.subscription = subscription;
    this.asked = false;
    this.refusedSince = null;
  }

  /** The subscription is gone. @internal */
  detach() {
    this.subscription = null;
    this.asked = false;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** There will be no more events; the reader gets those that have arrived, then this error. @internal */
  fail(error) {
    this.#failure ??= error;
    this.detach();
  }

  /** Take an event. False: the feed has let go of its subscription. @internal */
  offer(event) {
    if (!EVENTS.has(event.type)) return true; // of a newer daemon
    if (this.#queue.length >= this.#eventsMax) {
      this.paused = true;
      this.detach();
      return false;
    }
    try {
      if (!this.#arrived.apply(event)) return true;
    } catch (error) {
      this.fail(error);
      return false;
    }
    this.#queue.push(event);
    for (const wake of this.#waiting.splice(0)) wake();
    return true;
  }
}

// -- calls ------------------------------------------------------------------------------------------------------------

/** A UUID of version 7: it sorts by time. */
export function uuid7() {
  const bytes = crypto.getRandomValues(new Uint8Array(10));
  bytes[0] = (bytes[0] & 0x0f) | 0x70;
  bytes[2] = (bytes[2] & 0x3f) | 0x80;
  const random = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const hex = Date.now().toString(16).padStart(12, "0") + random;
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Refuse what a Number has spoiled, or would. Throws TypeError, RangeError. */
function check(params, method = "") {
  // The betting wallet counts in whole units.
  const wallet = method.startsWith("wallet_");
  for (const [name, value] of Object.entries(params)) {
    if (wallet && name === "amount" && typeof value === "number" && !Number.isSafeInteger(value))
      throw new RangeError(`${name} is not exact as a Number`);
    if (!wallet && /^(amount|overdraft_limit|below|above)$/.test(name) && typeof value !== "string")
      throw new TypeError(`${name} must be text such as "10.00": a Number cannot hold money`);
    if (name.endsWith("_id") && typeof value === "number" && !Number.isSafeInteger(value))
      throw new RangeError(`${name} is not exact as a Number`);
  }
  for (const item of params.items ?? []) check(item.params ?? {});
}

const idName = (method) =>
  method === "transaction_batch" ? "batch_id" : method.startsWith("wallet_") ? "transaction_uuid" : "transaction_id";

/** The parameters with the id that makes a money command safe to send twice. */
function withId(method, params) {
  const name = idName(method);
  return !MONEY.has(method) || params[name] != null ? params : { ...params, [name]: uuid7() };
}

/** One request, from its first sending to its answer. `settle(error, result)` is called with each answer. */
class Call {
  sends = 0;
  inFlight = false; // sent on the present connection, and not answered
  uncertain = false; // an earlier sending may be carried out, or have been
  settle = (_error, _result) => {};

  constructor(id, method, params, bound = false) {
    this.id = id;
    this.method = method;
    this.bound = bound; // to one connection: means nothing on the next
    this.transactionId = params[idName(method)] ?? null;
    this.repeatable = this.transactionId !== null || isRead(method);
    this.text = JSON.stringify({ jsonrpc: "2.0", id, method, params });
  }
}

// -- the client -------------------------------------------------------------------------------------------------------

/**
 * Connect, and stay connected until `close`.
 *
 * @param {string} url such as "ws://127.0.0.1:8710/"
 * @param {Partial<typeof DEFAULTS> & {
 *   token?: string,
 *   tokenAs?: "message" | "subprotocol",
 *   WebSocket?: any,
 *   onNotice?: (notice: {type: string, expires_at?: string}) => void,
 * }} [options] `tokenAs`: "message" (the default) works for every token; "subprotocol" saves a round trip, for tokens
 *   that expire within 24 hours. `WebSocket`: a class to use instead of the global one. `onNotice` gets what the daemon
 *   says about the session, such as `{type: "expiring", expires_at}`: call `session_authenticate` with a newer token.
 * @returns {Promise<Client>}
 * @throws CannotConnect, ConnectionEnded, LedgerError (the token), TypeError (no WebSocket here), SyntaxError (the URL)
 */
export async function connect(url, options = {}) {
  const client = new Client(url, options);
  await client.opened;
  return client;
}

/** Made by `connect`. */
export class Client {
  /** Why there will be no more connections; null while there may be. @type {Error | null} */
  ended = null;
  /** How many connections there have been. */
  connections = 0;
  #url;
  #options;
  #token;
  #number = 0;
  /** @type {Map<number, Call>} not answered */ #waiting = new Map();
  /** @type {Call[]} not sent on this connection */ #unsent = [];
  /** @type {Set<Feed>} */ #feeds = new Set();
  /** @type {Map<string, Feed>} by subscription */ #routes = new Map();
  #inFlight = 0;
  #socket = null; // of a connection that stands: open, and signed in if there is a token
  #hangUp = () => {};
  #stopResting = () => {};
  #hasOpened;
  #hasFailed;

  /** @internal */
  constructor(url, options) {
    const chosen = options.WebSocket ?? globalThis.WebSocket;
    if (!chosen)
      throw new TypeError("There is no WebSocket here: Node has one from 22 on. Give one: connect(url, {WebSocket})");
    this.#url = url;
    this.#options = { ...DEFAULTS, ...options, WebSocket: chosen };
    this.#token = options.token ?? null;
    /** @internal */
    this.opened = new Promise((resolve, reject) => {
      this.#hasOpened = resolve;
      this.#hasFailed = reject;
    });
    this.#keepConnected().catch((error) => this.#end(error));
  }

  /**
   * Call a method; resolves to its result. Amounts go and come as text.
   *
   * @param {string} method
   * @param {Record<string, any>} [params]
   * @returns {Promise<any>}
   * @throws LedgerError, OutcomeUnknown, CannotConnect, ConnectionEnded; TypeError and RangeError for unsafe numbers
   */
  async call(method, params = {}) {
    if (/^ledger_(un)?subscribe$/.test(method)) throw new TypeError(`${method} belongs to a connection: use subscribe`);
    check(params, method);
    const call = new Call(++this.#number, method, withId(method, params));
    const giveUpAt = now() + this.#options.callMs;
    for (let attempt = 0; ; attempt++) {
      try {
        const result = await this.#exchange(call);
        this.#noteSession(method, params, result);
        // An earlier sending of the batch that was lost may still carry out what this one refused.
        if (call.uncertain && method === "transaction_batch")
          for (const { error } of result.outcomes) if (error) error.data.applied = null;
        return result;
      } catch (error) {
        if (!(error instanceof LedgerError)) throw error;
        const pause = this.#pauseAfter(call, error, attempt);
        if (pause === null || now() + pause > giveUpAt) {
          if (call.uncertain && call.transactionId !== null) error.applied = null;
          throw error;
        }
        call.uncertain ||= error.applied === null;
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    }
  }

  /**
   * Follow a channel. Read the feed with `for await`, or give handlers (`onStart`, `onUpdate`, `onLive`,
   * `onTransaction`, `onMonitor`, `onAccountAdded`, `onHeartbeat`, `onError`), each awaited before the next event is
   * taken.
   *
   * @param {"balances" | "transactions" | "advances" | "monitors" | "alerts"} channel
   * @param {Record<string, any>} [options] those of `ledger_subscribe`; `since` is the `position` of an earlier feed
   * @param {Record<string, (event: any) => any>} [handlers]
   * @returns {Feed}
   */
  subscribe(channel, options = {}, handlers) {
    const attach = (feed) => this.#attach(feed);
    const letGo = (feed, subscription) => this.#leave(feed, subscription);
    const feed = new Feed(channel, options, this.#options.eventsMax, attach, letGo);
    this.#feeds.add(feed);
    if (this.ended) feed.fail(this.ended);
    this.#attach(feed);
    if (handlers) feed.pump(handlers);
    return feed;
  }

  /** Close the connection. Feeds end; calls that wait for an answer get ConnectionEnded or OutcomeUnknown. */
  close() {
    for (const feed of this.#feeds) feed.close();
    this.#end(new ConnectionEnded(1000, "closed by this client"));
  }

  #exchange(call) {
    return new Promise((resolve, reject) => {
      call.settle = (error, result) => (error ? reject(error) : resolve(result));
      if (this.ended) call.settle(this.#endOf(call));
      else this.#post(call);
    });
  }

  /** How long to wait before asking again; null if this is the answer. */
  #pauseAfter(call, error, attempt) {
    const unsure = error.applied === null && call.transactionId !== null;
    if (!unsure && !PASSING.has(error.name)) return null;
    if (!call.repeatable && error.applied === null) return null;
    return Math.max(error.data.retry_after_ms ?? 0, this.#pause(attempt));
  }

  /** Exponential, and spread so that clients do not march in step. */
  #pause(attempt) {
    const { delayMinMs, delayMaxMs } = this.#options;
    return Math.min(delayMaxMs, delayMinMs * 2 ** attempt) * (0.5 + Math.random() / 2);
  }

  /** Whom the connection acts for goes with the client to its next connection. */
  #noteSession(method, params, result) {
    if (method === "session_login") this.#token = result.token ?? this.#token;
    else if (method === "session_authenticate") this.#token = params.token;
    else if (method === "session_logout") this.#token = null;
  }

  // -- feeds

  /** Ask for a feed's subscription, unless there is one or no connection stands. */
  #attach(feed) {
    if (!this.#socket || feed.busy) return;
    feed.asked = true;
    this.#ask("ledger_subscribe", feed.params(), (error, id) => this.#attached(feed, error, id));
  }

  #attached(feed, error, subscription) {
    if (!error && feed.closed) this.#leave(feed, subscription);
    else if (!error) {
      this.#routes.set(subscription, feed);
      feed.attached(subscription);
    } else if (error instanceof Lost) feed.detach();
    else this.#refused(feed, error);
  }

  /** A feed was refused, or ended by the daemon: for now, or for good. */
  #refused(feed, error) {
    feed.refusedSince ??= now();
    if (!PASSING.has(error.name) || now() - feed.refusedSince > this.#options.reconnectMs) return feed.fail(error);
    feed.detach();
    feed.resting = true;
    setTimeout(() => {
      feed.resting = false;
      this.#attach(feed);
    }, this.#pause(3));
  }

  async #leave(feed, subscription) {
    if (feed.closed) this.#feeds.delete(feed);
    this.#routes.delete(subscription);
    if (subscription === null || !this.#socket) return;
    // An error means that it is gone already, perhaps with its connection: just as well.
    await new Promise((resolve) => this.#ask("ledger_unsubscribe", { subscription }, resolve));
  }

  // -- the connection

  async #keepConnected() {
    const { firstConnectMs, reconnectMs } = this.#options;
    let failingSince = now();
    let attempt = 0;
    while (!this.ended) {
      const { code, reason, useful } = await this.#oneConnection();
      if (useful) [failingSince, attempt] = [now(), 0];
      const patienceMs = this.connections > 0 ? reconnectMs : firstConnectMs;
      if (isFinal(code)) this.#end(new ConnectionEnded(code, reason));
      else if (!useful && now() - failingSince >= patienceMs) this.#end(new CannotConnect(reason));
      if (!this.ended) await this.#rest(this.#pause(attempt++));
    }
  }

  #rest(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#stopResting = () => {
        clearTimeout(timer);
        resolve(undefined);
      };
    });
  }

  /** Dial, talk, and resolve when the connection is lost: how, and whether it had been of use. */
  #oneConnection() {
    const { WebSocket, connectTimeoutMs, silenceMs } = this.#options;
    const socket = new WebSocket(this.#url, this.#subprotocols());
    return new Promise((resolve) => {
      let heardAt = now();
      let useful = false;
      let trouble = "the daemon cannot be reached, or refused the handshake";
      const lost = (code, reason) => {
        clearTimeout(hurry);
        clearInterval(watch);
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.close(1000);
        this.#connectionLost();
        resolve({ code, reason, useful });
      };
      const hurry = setTimeout(lost, connectTimeoutMs, 1006, "no answer within the time allowed");
      const stands = () => {
        clearTimeout(hurry);
        this.#connectionStands(socket);
      };
      // The daemon pings and is answered below this API: only asking shows whether a silent connection is alive.
      const watch = setInterval(() => {
        const silentMs = now() - heardAt;
        if (silentMs > silenceMs) lost(1006, "no sign of life");
        else if (silentMs > silenceMs / 2 && this.#socket) this.#ask("system_ping", {}, () => {});
      }, silenceMs / 4);
      this.#hangUp = () => lost(1000, "closed by this client");
      socket.onerror = (event) => (trouble = event.message || trouble);
      socket.onclose = (event) => lost(event.code, event.reason || trouble);
      socket.onopen = () => {
        trouble = "the connection was lost";
        if (this.#token !== null && this.#options.tokenAs !== "subprotocol") this.#signIn(socket, stands, lost);
        else stands();
      };
      socket.onmessage = (event) => {
        heardAt = now();
        useful ||= this.#socket !== null;
        try {
          this.#route(JSON.parse(event.data));
        } catch (error) {
          lost(1002, `a message that makes no sense: ${error}`);
        }
      };
    });
  }

  #subprotocols() {
    if (this.#token === null || this.#options.tokenAs !== "subprotocol") return ["ledgerd.v1"];
    const text = btoa(this.#token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    return ["ledgerd.v1", `ledgerd.bearer.${text}`];
  }

  /** Nothing else is sent before the daemon knows for whom. */
  #signIn(socket, stands, lost) {
    const call = new Call(++this.#number, "session_authenticate", { token: this.#token }, true);
    call.settle = (error) => {
      if (!error) stands();
      else if (PASSING.has(error.name)) lost(1013, error.message);
      else if (error instanceof LedgerError) this.#end(error);
    };
    this.#waiting.set(call.id, call);
    this.#send(call, socket);
  }

  /** Unanswered calls go first, in their first order; ids count up. */
  #connectionStands(socket) {
    this.#socket = socket;
    this.connections += 1;
    this.#unsent = [...this.#waiting.values()].sort((one, other) => one.id - other.id);
    this.#flush();
    for (const feed of this.#feeds) this.#attach(feed);
    this.#hasOpened();
  }

  #connectionLost() {
    this.#socket = null;
    this.#routes.clear();
    for (const call of [...this.#waiting.values()]) {
      const given = !call.repeatable || call.sends >= SENDS_MAX;
      if (call.bound) this.#settle(call, new Lost());
      else if (call.inFlight && given) this.#settle(call, new OutcomeUnknown(call.method, call.transactionId));
      else if (call.inFlight) [call.inFlight, call.uncertain] = [false, true];
    }
    this.#inFlight = 0;
    for (const feed of this.#feeds) feed.detach();
  }

  /** Ask for something that means nothing on another connection: it is not sent again. */
  #ask(method, params, settle) {
    const call = new Call(++this.#number, method, params, true);
    call.settle = settle;
    this.#post(call);
  }

  #post(call) {
    this.#waiting.set(call.id, call);
    this.#unsent.push(call);
    this.#flush();
  }

  #flush() {
    while (this.#socket && this.#unsent.length > 0 && this.#inFlight < IN_FLIGHT_MAX)
      this.#send(this.#unsent.shift(), this.#socket);
  }

  #send(call, socket) {
    call.sends += 1;
    call.inFlight = true;
    this.#inFlight += 1;
    socket.send(call.text);
  }

  #route(message) {
    if (message.method === "ledger_subscription") this.#routeEvent(message.params);
    else if (message.method === "ledger_session") queueMicrotask(() => this.#options.onNotice?.(message.params));
    else {
      const call = this.#waiting.get(message.id);
      if (call) this.#settle(call, "error" in message ? new LedgerError(message.error) : null, message.result);
      this.#flush();
    }
  }

  #routeEvent({ subscription, result: event }) {
    const feed = this.#routes.get(subscription);
    if (feed && event.type === "closed") {
      this.#routes.delete(subscription);
      const message = "The daemon ended the subscription.";
      this.#refused(feed, new LedgerError({ message, data: { code: event.code } }));
    } else if (feed && !feed.offer(event)) this.#leave(feed, subscription);
  }

  #settle(call, error, result) {
    if (!this.#waiting.delete(call.id)) return;
    if (call.inFlight) this.#inFlight -= 1;
    call.inFlight = false;
    call.settle(error, result);
  }

  // -- the end

  #end(error) {
    if (this.ended) return;
    this.ended = error;
    this.#hangUp();
    this.#stopResting();
    for (const call of [...this.#waiting.values()]) this.#settle(call, this.#endOf(call));
    for (const feed of this.#feeds) feed.fail(error);
    this.#hasFailed(error);
  }

  /** What a call gets when the client has ended: a command that had been sent may have been carried out. */
  #endOf(call) {
    const unknown = (call.uncertain || call.inFlight) && !isRead(call.method);
    return unknown ? new OutcomeUnknown(call.method, call.transactionId) : this.ended;
  }
}
