// Prompts put together from phrases. A group is {name, join, phrases: [{text, label}]}, see ldm/apps/web/examples.py;
// the first group says what the image is of, the others add to it. A group with `after` is of another group's phrase: it
// brings the first one of that group, and goes when that goes.

/** The longest phrase of a group that stands in the prompt as words of its own, or "". */
export function chosen(prompt, { phrases }) {
  const text = ` ${prompt.replaceAll(",", " ,")} `;
  const there = phrases.map((phrase) => phrase.text).filter((phrase) => text.includes(` ${phrase} `));
  return there.sort((a, b) => b.length - a.length)[0] ?? "";
}

/** The prompt with `phrase` of group number `index`: in place of another of that group, or added; chosen again, it goes. */
export function compose(prompt, groups, index, phrase) {
  const picked = groups.map((group) => chosen(prompt, group));
  const again = picked[index] === phrase;
  picked[index] = again ? "" : phrase;
  groups.forEach(({ after }, i) => {
    if (after === undefined || !picked[i] || picked[after]) return;
    if (i === index) picked[after] = groups[after].phrases[0].text;
    else picked[i] = "";
  });
  picked[0] ||= groups[0].phrases[0].text;
  return picked.reduce((text, each, i) => (i && each ? text + groups[i].join + each : text || each), "");
}
