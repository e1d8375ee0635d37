"""Captions with what people bring from the web, and what open_clip makes of each before it tokenizes it."""

CLEANED = {
    "A  Red\n\tApple ": "a red apple",
    "the cat\u2019s \u201chat\u201d": 'the cat\'s "hat"',
    "\u201elow\u201f \u02bcn\u02bc": "\"low\" 'n'",
    "salt &amp; pepper": "salt & pepper",
    "salt &amp;amp; pepper": "salt & pepper",
    "1 &lt 2, &quot;x&quot;, it&#39;s, it&#x27;s, it&apos;s": "1 < 2, \"x\", it's, it's, it's",
    "caf&eacute; &Eacute;TUDE": "caf\xe9 \xe9tude",
    "&ldquo;quoted&rdquo; and&nbsp;spaced": '"quoted" and spaced',
    "&#8217;n&#x2019; &unknown; R&D &": "'n' &unknown; r&d &",
    "\uff26\uff55\uff4c\uff4c\u3000\uff57\uff49\uff44\uff54\uff48\uff01": "full width!",
    "\uff76\uff9e": "\u30ac",
    "\ufb01re \ufb02y o\ufb03ce \ufb05 \ufb06 \u01c4 \u0132": "fire fly office \u017ft st d\u017e ij",
    "\u039f\u0394\u039f\u03a3 \u03a3\u039f\u03a3.": "\u03bf\u03b4\u03bf\u03c2 \u03c3\u03bf\u03c2.",
    "e\u0301 \u212b": "\xe9 \xe5",
    "\x1b[31mred\x1b[0m \x07bell \ufeffmark": "red bell mark",
    "x\xb2 \u00bd \u2122 \U0001f600 \u6c34": "x\xb2 \xbd \u2122 \U0001f600 \u6c34",
    "line\u2028break\x85two, it\x92s": "line break\u2026two, it's",
    "": "",
}
