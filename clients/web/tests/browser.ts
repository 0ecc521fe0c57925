// Chromium for the tests, and a page that notes what must not happen.
import { chromium, type Browser, type BrowserContextOptions, type Page } from "playwright-core";

const ARGUMENTS = [
  ...["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"],
  ...["--disable-background-networking", "--disable-component-update"],
  "--host-resolver-rules=MAP weft.example 127.0.0.1", // a host that is not "secure" over plain HTTP
];

export function launch(): Promise<Browser> {
  return chromium.launch({ executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium", args: ARGUMENTS });
}

export interface Watched {
  page: Page;
  /** Errors of scripts, and breaches of the content security policy. */
  faults: string[];
  /** Requests to any other host. */
  foreign: string[];
}

export async function open(browser: Browser, url: string, options: BrowserContextOptions = {}): Promise<Watched> {
  const context = await browser.newContext({ locale: "en-GB", viewport: { width: 1200, height: 800 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  const faults: string[] = [];
  const foreign: string[] = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    const text = message.text();
    if (/Content Security Policy|TrustedHTML|Uncaught/i.test(text)) faults.push(text);
  });
  page.on("dialog", (dialog) => {
    if (dialog.type() !== "beforeunload") faults.push(`dialog: ${dialog.message()}`);
    void dialog.accept();
  });
  const origin = new URL(url).origin;
  context.on("request", (request) => {
    if (new URL(request.url()).origin !== origin) foreign.push(request.url());
  });
  await page.goto(url);
  return { page, faults, foreign };
}

export async function send(page: Page, question: string): Promise<void> {
  await page.getByLabel(/^(Your question|您的问题)$/).fill(question);
  await page.keyboard.press("Enter");
}

/** The last answer, as it is read. */
export const answer = (page: Page) => page.locator("article").last().locator(".prose");
