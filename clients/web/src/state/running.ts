// The turns that this tab is reading, kept over a reload in session storage.
const KEY = "weft.running";
/** An older entry is of a tab that was closed and opened again: not worth going on with. */
const MAX_AGE_MS = 10 * 60_000;

export interface RunningTurn {
  conversationId: string;
  requestId: string;
  question: string;
  startedAt: number;
}

export function runningTurns(): RunningTurn[] {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "[]") as RunningTurn[];
    return kept.filter((turn) => Date.now() - turn.startedAt < MAX_AGE_MS);
  } catch {
    return [];
  }
}

export function rememberRunning(turn: RunningTurn): void {
  save([...runningTurns().filter((one) => one.requestId !== turn.requestId), turn]);
}

export function forgetRunning(requestId: string): void {
  save(runningTurns().filter((one) => one.requestId !== requestId));
}

function save(turns: RunningTurn[]): void {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(turns));
  } catch {
    // storage is full or off: a reload then goes on by what the server knows
  }
}
