// The first screen: what this is, what to do, and something to click.
import { ask } from "../state/chat";
import { datasets, documents } from "../state/knowledge";
import { words } from "../state/settings";
import { Icon, Mark } from "./icons";
import { pickFiles } from "./pick";

export function Welcome() {
  const t = words.value;
  const ready = datasets.value?.some((dataset) => (dataset.chunks ?? 0) > 0) ?? false;
  return (
    <div class="mx-auto flex min-h-full max-w-3xl flex-col justify-center px-4 py-10 sm:px-6">
      <Mark class="size-11" />
      <h1 class="mt-6 text-3xl leading-tight font-semibold tracking-tight text-balance sm:text-4xl">{t.welcome}</h1>
      <p class="mt-3 max-w-xl text-lg leading-relaxed text-soft">{t.welcomeText}</p>
      {ready ? <Ready /> : <DropCard />}
      <Examples />
      {!ready && <Steps />}
    </div>
  );
}

function Ready() {
  return (
    <p class="mt-6 flex items-center gap-2 text-accent">
      <Icon name="check" />
      {words.value.youHave}
    </p>
  );
}

function DropCard() {
  const t = words.value;
  return (
    <div class="mt-8 flex flex-col items-center gap-3 rounded-3xl border-2 border-dashed border-line bg-surface px-6 py-9 text-center">
      <span class="text-accent">
        <Icon name="file" class="size-8" />
      </span>
      <div>
        <p class="text-lg font-medium">{t.dropHere}</p>
        <p class="mt-1 text-sm text-soft">{t.dropOr}</p>
      </div>
      <button type="button" class="button button-main mt-1" onClick={() => pickFiles()}>
        {t.choose}
      </button>
    </div>
  );
}

function Examples() {
  const t = words.value;
  const all = Object.values(documents.value).flatMap((list) => list.items);
  const names = all.filter((one) => one.status === "indexed").map((one) => one.name);
  const about = names.slice(-2).reverse().map(t.exampleAbout);
  const questions = [...about, ...t.examples].slice(0, 3);
  return (
    <section class="mt-8">
      <h2 class="text-sm font-medium text-soft">{t.tryAsking}</h2>
      <ul class="mt-3 flex flex-wrap gap-2">
        {questions.map((question) => (
          <li key={question} class="max-w-full">
            <button
              type="button"
              class="min-h-10 max-w-full rounded-full border border-line bg-surface px-4 py-1.5 text-left text-sm wrap-anywhere transition-colors hover:border-accent"
              onClick={() => ask(question)}
            >
              {question}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Steps() {
  const t = words.value;
  const steps = [
    [t.step1, t.step1Text],
    [t.step2, t.step2Text],
    [t.step3, t.step3Text],
  ];
  return (
    <ol class="mt-10 grid gap-6 sm:grid-cols-3">
      {steps.map(([title, text], index) => (
        <li key={title}>
          <p class="flex items-center gap-2 font-medium">
            <span class="cite m-0 translate-y-0" aria-hidden="true">
              {index + 1}
            </span>
            {title}
          </p>
          <p class="mt-1.5 text-sm leading-relaxed text-soft">{text}</p>
        </li>
      ))}
    </ol>
  );
}
