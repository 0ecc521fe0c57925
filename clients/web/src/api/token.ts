// The access token: fetched by the page itself where the mesh hands out development tokens, else
// asked for in a dialog and kept in this tab's session storage only.
import { Code, ConnectError } from "@connectrpc/connect";
import { signal } from "@preact/signals";

interface Token {
  value: string;
  /** Milliseconds since the epoch; after that a new one is fetched. */
  renewAt: number;
}

const KEY = "weft.token";
const RENEW_BEFORE_MS = 60_000;
/** How the mesh says that it hands out no tokens here: no such route, or not to this host. */
const NO_TOKENS_HERE = [401, 403, 404, 405];

/** Set while a person is asked for a token; the dialog calls `give`. */
export const tokenRequest = signal<{ refused: boolean; give: (token: string) => void } | null>(null);

let held: Token | null = null;
let pending: Promise<Token> | null = null;
let refusedOnce = false;

/** A token that is valid now. Fails with UNAVAILABLE where the mesh does not answer. */
export async function accessToken(): Promise<string> {
  if (held && Date.now() < held.renewAt) return held.value;
  pending ??= obtain().finally(() => {
    pending = null;
  });
  held = await pending;
  return held.value;
}

/** Forgets a token that the mesh did not accept. */
export function refuseToken(value: string): void {
  if (held?.value !== value) return;
  held = null;
  refusedOnce = sessionStorage.getItem(KEY) === value;
  sessionStorage.removeItem(KEY);
}

async function obtain(): Promise<Token> {
  const kept = sessionStorage.getItem(KEY);
  if (kept) return { value: kept, renewAt: Infinity };
  let response: Response;
  try {
    response = await fetch("/api/v1/dev/token", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: "{}",
    });
  } catch (error) {
    throw new ConnectError(String(error), Code.Unavailable);
  }
  if (NO_TOKENS_HERE.includes(response.status)) return ask();
  if (!response.ok) throw new ConnectError(`The token endpoint answered ${response.status}.`, Code.Unavailable);
  const body = (await response.json()) as { token: string; expires_at: string | number };
  return { value: body.token, renewAt: expiry(body.expires_at) - RENEW_BEFORE_MS };
}

/** RFC 3339, or seconds since the epoch. */
function expiry(value: string | number): number {
  const at = typeof value === "number" ? value * 1000 : Date.parse(value);
  return Number.isNaN(at) ? Date.now() + 2 * RENEW_BEFORE_MS : at;
}

function ask(): Promise<Token> {
  return new Promise((resolve) => {
    tokenRequest.value = {
      refused: refusedOnce,
      give: (value) => {
        sessionStorage.setItem(KEY, value);
        tokenRequest.value = null;
        resolve({ value, renewAt: Infinity });
      },
    };
  });
}
