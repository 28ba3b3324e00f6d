/* A first look at JSON: what glance.py describes. One pass, nothing allocated before it is known that the answer is yes.
 *
 * Whatever is not the common case, or not JSON, is answered with None, and looked at by msgspec and `body.py` or `sse.py`.
 * So this is stricter than they are, never laxer: tests/serve/test_glance.py holds it to that.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef const unsigned char *at_t;

typedef struct {
    at_t p, end;
    int depth, deepest;
    int counts, words; /* whether words of an answer are counted, and how many keys with some there were */
} cursor;

typedef struct {
    at_t from;
    size_t n;
} span;

#define NO (-1)

static inline void gap(cursor *c) {
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\n' || *c->p == '\r' || *c->p == '\t')) c->p++;
}

static inline int take(cursor *c, unsigned char mark) { /* and the gap behind it */
    if (c->p >= c->end || *c->p != mark) return 0;
    c->p++;
    gap(c);
    return 1;
}

static int hex4(at_t p, at_t end) {
    int value = 0;
    if (end - p < 4) return NO;
    for (int i = 0; i < 4; i++) {
        unsigned char x = p[i];
        if (x >= '0' && x <= '9') value = value * 16 + x - '0';
        else if ((x | 32) >= 'a' && (x | 32) <= 'f') value = value * 16 + (x | 32) - 'a' + 10;
        else return NO;
    }
    return value;
}

/* Behind an escape that hides no letter, digit, colon or underscore and is no half of a pair; NULL for all others. */
static at_t escape_end(at_t p, at_t end) {
    if (end - p < 2) return NULL;
    if (p[1] != 'u') return memchr("\"\\/bfnrt", p[1], 8) ? p + 2 : NULL;
    int code = hex4(p + 2, end);
    if (code < 0 || (code >= 0xDC00 && code < 0xE000)) return NULL;
    if ((code >= '0' && code <= ':') || code == '_' || ((code | 32) >= 'a' && (code | 32) <= 'z')) return NULL;
    if (code < 0xD800 || code >= 0xE000) return p + 6;
    int low = end - p >= 8 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, end) : NO;
    return low >= 0xDC00 && low < 0xE000 ? p + 12 : NULL;
}

/* 1: a string, 2: one with escapes, 0: none. Bytes beyond ASCII are the caller's to judge. */
static int string(cursor *c, span *of) {
    if (c->p >= c->end || *c->p != '"') return 0;
    at_t p = c->p + 1;
    int kind = 1;
    of->from = p;
    for (;;) {
        while (c->end - p >= 8) { /* eight at once, while none of them is a quote, a backslash or a control */
            uint64_t w;
            memcpy(&w, p, 8);
            const uint64_t ones = 0x0101010101010101ULL, tops = 0x8080808080808080ULL;
            uint64_t quote = w ^ ones * '"', slash = w ^ ones * '\\';
            uint64_t odd = ((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((w - ones * 32) & ~w);
            if (odd & tops) break;
            p += 8;
        }
        if (p >= c->end || *p < 32) return 0;
        if (*p == '"') break;
        if (*p != '\\') {
            p++;
        } else {
            if (!(p = escape_end(p, c->end))) return 0;
            kind = 2;
        }
    }
    of->n = (size_t)(p - of->from);
    c->p = p + 1;
    gap(c);
    return kind;
}

static int ends_in_url(span s) {
    return s.n >= 3 && (s.from[s.n - 3] | 32) == 'u' && (s.from[s.n - 2] | 32) == 'r' && (s.from[s.n - 1] | 32) == 'l';
}

static inline int is(span s, const char *word, size_t n) { return s.n == n && memcmp(s.from, word, n) == 0; }
#define IS(s, word) is(s, word, sizeof word - 1)

/* A whole number below 10**9 without a sign; NO where something else stands there. */
static int64_t whole(cursor *c) {
    at_t from = c->p;
    int64_t value = 0;
    while (c->p < c->end && *c->p >= '0' && *c->p <= '9' && c->p - from < 10) value = value * 10 + *c->p++ - '0';
    Py_ssize_t n = c->p - from;
    if (n < 1 || n > 9 || (n > 1 && *from == '0')) return NO;
    if (c->p < c->end && (*c->p == '.' || (*c->p | 32) == 'e')) return NO;
    gap(c);
    return value;
}

static int number(cursor *c) { /* without an exponent, of at most 18 digits */
    at_t from = c->p;
    if (c->p < c->end && *c->p == '-') c->p++, from++;
    while (c->p < c->end && *c->p >= '0' && *c->p <= '9') c->p++;
    if (c->p == from || (c->p - from > 1 && *from == '0')) return 0;
    if (c->p < c->end && *c->p == '.') {
        at_t dot = c->p++;
        while (c->p < c->end && *c->p >= '0' && *c->p <= '9') c->p++;
        if (c->p == dot + 1) return 0;
    }
    if (c->p - from > 18 || (c->p < c->end && (*c->p | 32) == 'e')) return 0;
    gap(c);
    return 1;
}

static int word(cursor *c, const char *said, size_t n) {
    if ((size_t)(c->end - c->p) < n || memcmp(c->p, said, n) != 0) return 0;
    c->p += n;
    gap(c);
    return 1;
}
#define WORD(c, said) word(c, said, sizeof said - 1)

/* A name behind which a delta says something (`sse.PIECE`), where it does. */
static int says(const cursor *c, span key) {
    static const struct { const char *name; size_t n; } names[] = {
        {"content", 7}, {"text", 4}, {"reasoning_content", 17}, {"reasoning", 9}, {"arguments", 9}, {"delta", 5},
        {"partial_json", 12}, {"thinking", 8}, {"refusal", 7},
    };
    if (c->end - c->p < 2 || c->p[0] != '"' || c->p[1] == '"') return 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (is(key, names[i].name, names[i].n)) return 1;
    return 0;
}

/* A key and the colon behind it; where words are counted none that an escape may hide. */
static int name(cursor *c, span *key) {
    int kind = string(c, key);
    if (!kind || !take(c, ':')) return 0;
    if (!c->counts) return 1;
    c->words += says(c, *key);
    return kind == 1;
}

/* Any value. No string in it ends in `url`, where `links` is to be told. */
static int value(cursor *c, int *links) {
    if (c->p >= c->end) return 0;
    span s;
    switch (*c->p) {
    case '"':
        if (!string(c, &s)) return 0;
        *links |= ends_in_url(s);
        return 1;
    case '{':
        if (++c->depth > c->deepest) return 0;
        c->p++, gap(c);
        if (!take(c, '}')) {
            do {
                if (!name(c, &s) || !value(c, links)) return 0;
                *links |= ends_in_url(s);
            } while (take(c, ','));
            if (!take(c, '}')) return 0;
        }
        c->depth--;
        return 1;
    case '[':
        if (++c->depth > c->deepest) return 0;
        c->p++, gap(c);
        if (!take(c, ']')) {
            do
                if (!value(c, links)) return 0;
            while (take(c, ','));
            if (!take(c, ']')) return 0;
        }
        c->depth--;
        return 1;
    case 't': return WORD(c, "true");
    case 'f': return WORD(c, "false");
    case 'n': return WORD(c, "null");
    default: return number(c);
    }
}

/* A list of objects, each `role` among their own keys a string. */
static int messages(cursor *c, int *links) {
    if (++c->depth > c->deepest || !take(c, '[')) return 0;
    if (!take(c, ']')) {
        do {
            span s, role;
            if (++c->depth > c->deepest || !take(c, '{')) return 0;
            if (!take(c, '}')) {
                do {
                    int kind = string(c, &s);
                    if (!kind || !take(c, ':')) return 0;
                    if (kind == 2) return 0; /* an escape may hide a name */
                    *links |= ends_in_url(s);
                    if (IS(s, "role")) {
                        if (!string(c, &role)) return 0;
                        *links |= ends_in_url(role);
                    } else if (!value(c, links)) {
                        return 0;
                    }
                } while (take(c, ','));
                if (!take(c, '}')) return 0;
            }
            c->depth--;
        } while (take(c, ','));
        if (!take(c, ']')) return 0;
    }
    c->depth--;
    return 1;
}

static int flag(cursor *c) { /* 1, 0; NO where something else stands there. null is false */
    return WORD(c, "true") ? 1 : WORD(c, "false") || WORD(c, "null") ? 0 : NO;
}

static int begin(cursor *c, PyObject *body, Py_ssize_t deepest) {
    char *at;
    Py_ssize_t n;
    if (PyBytes_AsStringAndSize(body, &at, &n) < 0) return 0;
    c->p = (at_t)at, c->end = c->p + n, c->depth = 1, c->deepest = deepest > 1000 ? 1000 : (int)deepest;
    c->counts = c->words = 0;
    gap(c);
    return 1;
}

/* ---- bodies ----------------------------------------------------------------------------------------------------- */

enum { MODEL, STREAM, OPTIONS, PROMPT, MAX_1, MAX_2, MAX_3, N_CHOICES, N_KEYS };

typedef struct {
    span model, prompt;
    int64_t limit; /* the largest of those that are said, NO: none is */
    int stream, wants_usage, has_options, links;
    unsigned seen;
} sight;

static int once(sight *s, int key) {
    unsigned bit = 1u << key;
    if (s->seen & bit) return 0;
    s->seen |= bit;
    return 1;
}

static int options(cursor *c, sight *s) {
    span key;
    s->has_options = 1;
    if (WORD(c, "null")) return 1;
    if (++c->depth > c->deepest || !take(c, '{')) return 0;
    if (string(c, &key) != 1 || !IS(key, "include_usage") || !take(c, ':')) return 0;
    s->wants_usage = flag(c);
    c->depth--;
    return s->wants_usage != NO && take(c, '}');
}

static int limit(cursor *c, sight *s, int64_t least) {
    if (WORD(c, "null")) return 1;
    int64_t most = whole(c);
    if (most < least) return 0;
    if (most > s->limit) s->limit = most;
    return 1;
}

static int prompt(cursor *c, sight *s, int is_chat) {
    s->prompt.from = c->p;
    if (c->p < c->end && *c->p == 'n') return 0; /* null: it is missing */
    if (is_chat ? !messages(c, &s->links) : !value(c, &s->links)) return 0;
    at_t end = c->p;
    while (end > s->prompt.from && (end[-1] == ' ' || end[-1] == '\n' || end[-1] == '\r' || end[-1] == '\t')) end--;
    s->prompt.n = (size_t)(end - s->prompt.from);
    return 1;
}

/* Names that are judged elsewhere, in whatever letters: of a key that may be one of them nothing is said here. */
static int may_be_judged(span key) {
    static const struct { const char *name; size_t n; } judged[] = {
        {"n", 1}, {"model", 5}, {"input", 5}, {"stream", 6}, {"prompt", 6}, {"best_of", 7}, {"messages", 8},
        {"max_tokens", 10}, {"stream_options", 14}, {"max_output_tokens", 17}, {"max_completion_tokens", 21},
        {"api_key", 7}, {"api_base", 8}, {"base_url", 8}, {"model_list", 10}, {"prompt_embeds", 13},
        {"litellm_params", 14}, {"custom_llm_provider", 19},
    };
    for (size_t i = 0; i < sizeof judged / sizeof *judged; i++) {
        if (judged[i].n != key.n) continue;
        size_t k = 0;
        while (k < key.n && (key.from[k] | 32) == (judged[i].name[k] | 32)) k++;
        if (k == key.n) return 1;
    }
    return 0;
}

static int member(cursor *c, sight *s, span key, span own_prompt, int64_t least) {
    if (is(key, (const char *)own_prompt.from, own_prompt.n)) return once(s, PROMPT) && prompt(c, s, own_prompt.n == 8);
    if (IS(key, "model")) return once(s, MODEL) && string(c, &s->model) == 1 && !ends_in_url(s->model) && s->model.n;
    if (IS(key, "stream")) return once(s, STREAM) && (s->stream = flag(c)) != NO;
    if (IS(key, "stream_options")) return once(s, OPTIONS) && options(c, s);
    if (IS(key, "max_tokens")) return once(s, MAX_1) && limit(c, s, least);
    if (IS(key, "max_completion_tokens")) return once(s, MAX_2) && limit(c, s, least);
    if (IS(key, "max_output_tokens")) return once(s, MAX_3) && limit(c, s, least);
    if (IS(key, "n")) return once(s, N_CHOICES) && (WORD(c, "null") || whole(c) == 1);
    s->links |= ends_in_url(key);
    return !may_be_judged(key) && value(c, &s->links);
}

static PyObject *seen_of(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (n != 4) return PyErr_Format(PyExc_TypeError, "seen_of() takes 4 arguments (%zd given)", n), NULL;
    cursor c;
    char *name;
    Py_ssize_t name_n, least = PyLong_AsSsize_t(args[2]), deepest = PyLong_AsSsize_t(args[3]);
    if (((least == -1 || deepest == -1) && PyErr_Occurred()) || PyBytes_AsStringAndSize(args[1], &name, &name_n) < 0) return NULL;
    if (!begin(&c, args[0], deepest)) return NULL;
    span own_prompt = {(at_t)name, (size_t)name_n}, key;
    sight s = {.limit = NO};
    if (deepest < 1 || !take(&c, '{')) Py_RETURN_NONE;
    do {
        if (string(&c, &key) != 1 || !take(&c, ':')) Py_RETURN_NONE;
        for (size_t i = 0; i < key.n; i++)
            if (key.from[i] >= 0x80) Py_RETURN_NONE;
        if (!member(&c, &s, key, own_prompt, least)) Py_RETURN_NONE;
    } while (take(&c, ','));
    if (!take(&c, '}') || c.p != c.end || s.links || !s.model.n || !s.prompt.n) Py_RETURN_NONE;
    PyObject *model = PyUnicode_DecodeUTF8((const char *)s.model.from, (Py_ssize_t)s.model.n, NULL);
    PyObject *text = model ? PyBytes_FromStringAndSize((const char *)s.prompt.from, (Py_ssize_t)s.prompt.n) : NULL;
    PyObject *most = text ? PyLong_FromLongLong(s.limit == NO ? 0 : s.limit) : NULL;
    PyObject *found = most ? PyTuple_New(6) : NULL;
    if (!found) {
        Py_XDECREF(model), Py_XDECREF(text), Py_XDECREF(most);
        if (model || !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) return NULL;
        PyErr_Clear(); /* no text: whoever looks closer says so */
        Py_RETURN_NONE;
    }
    PyTuple_SET_ITEM(found, 0, model);
    PyTuple_SET_ITEM(found, 1, PyBool_FromLong(s.stream));
    PyTuple_SET_ITEM(found, 2, PyBool_FromLong(s.wants_usage));
    PyTuple_SET_ITEM(found, 3, PyBool_FromLong(s.has_options));
    PyTuple_SET_ITEM(found, 4, most);
    PyTuple_SET_ITEM(found, 5, text);
    return found;
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t prompt, cached, completion;
    int seen;
} counts;

static int cached(cursor *c, counts *of) {
    span key;
    int links = 0, once = 0;
    if (WORD(c, "null")) return 1;
    if (++c->depth > c->deepest || !take(c, '{')) return 0;
    if (!take(c, '}')) {
        do {
            if (string(c, &key) != 1 || !take(c, ':')) return 0;
            c->words += c->counts && says(c, key);
            if (!IS(key, "cached_tokens")) {
                if (!value(c, &links)) return 0;
            } else if (once++ || (!WORD(c, "null") && (of->cached = whole(c)) == NO)) {
                return 0;
            }
        } while (take(c, ','));
        if (!take(c, '}')) return 0;
    }
    c->depth--;
    return 1;
}

/* OpenAI's object: its two counts once each, perhaps what was cached; other names for them: not here. */
static int counted(cursor *c, counts *of, at_t *end) {
    span key;
    int links = 0;
    if (++c->depth > c->deepest || !take(c, '{')) return 0;
    do {
        if (string(c, &key) != 1 || !take(c, ':')) return 0;
        c->words += c->counts && says(c, key);
        if (IS(key, "prompt_tokens")) {
            if (of->seen & 1 || (of->prompt = whole(c)) == NO) return 0;
            of->seen |= 1;
        } else if (IS(key, "completion_tokens")) {
            if (of->seen & 2 || (of->completion = whole(c)) == NO) return 0;
            of->seen |= 2;
        } else if (IS(key, "prompt_tokens_details")) {
            if (of->seen & 4 || !cached(c, of)) return 0;
            of->seen |= 4;
        } else if (IS(key, "input_tokens") || IS(key, "output_tokens") || IS(key, "input_tokens_details") ||
                   IS(key, "cache_read_input_tokens") || IS(key, "cache_creation_input_tokens") || !value(c, &links)) {
            return 0;
        }
    } while (take(c, ','));
    *end = c->p;
    c->depth--;
    return take(c, '}') && (of->seen & 3) == 3;
}

static PyObject *usage_of(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (n != 2) return PyErr_Format(PyExc_TypeError, "usage_of() takes 2 arguments (%zd given)", n), NULL;
    cursor c;
    Py_ssize_t deepest = PyLong_AsSsize_t(args[1]);
    if ((deepest == -1 && PyErr_Occurred()) || !begin(&c, args[0], deepest)) return NULL;
    at_t end = NULL;
    counts of = {NO, NO, NO, 0};
    span key;
    int links = 0;
    if (deepest < 1 || !take(&c, '{')) Py_RETURN_NONE;
    do {
        if (string(&c, &key) != 1 || !take(&c, ':')) Py_RETURN_NONE;
        if (!IS(key, "usage")) {
            if (!value(&c, &links)) Py_RETURN_NONE;
        } else if (end || !counted(&c, &of, &end)) {
            Py_RETURN_NONE;
        }
    } while (take(&c, ','));
    if (!take(&c, '}') || c.p != c.end || !end) Py_RETURN_NONE;
    if (of.cached > of.prompt) of.cached = of.prompt;
    return Py_BuildValue("(LLLn)", (long long)of.prompt, (long long)of.cached, (long long)of.completion,
                         (Py_ssize_t)(end - (at_t)PyBytes_AS_STRING(args[0])));
}

/* ---- events of a stream ----------------------------------------------------------------------------------------- */

typedef struct {
    int n, finished; /* choices, and of those how many say why they ended */
    unsigned seen;
} ends;

static int choice(cursor *c, ends *of) {
    span key;
    int links = 0, once = 0;
    if (++c->depth > c->deepest || !take(c, '{')) return 0;
    of->n++;
    if (!take(c, '}')) {
        do {
            if (!name(c, &key)) return 0;
            if (!IS(key, "finish_reason")) {
                if (!value(c, &links)) return 0;
            } else {
                span why = {NULL, 0};
                if (once++ || (!WORD(c, "null") && string(c, &why) != 1)) return 0;
                of->finished += why.n > 0;
            }
        } while (take(c, ','));
        if (!take(c, '}')) return 0;
    }
    c->depth--;
    return 1;
}

static int choices(cursor *c, ends *of) {
    if (WORD(c, "null")) return 1;
    if (++c->depth > c->deepest || !take(c, '[')) return 0;
    if (!take(c, ']')) {
        do
            if (!choice(c, of)) return 0;
        while (take(c, ','));
        if (!take(c, ']')) return 0;
    }
    c->depth--;
    return 1;
}

static PyObject *event_of(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (n != 2) return PyErr_Format(PyExc_TypeError, "event_of() takes 2 arguments (%zd given)", n), NULL;
    cursor c;
    Py_ssize_t deepest = PyLong_AsSsize_t(args[1]);
    if ((deepest == -1 && PyErr_Occurred()) || !begin(&c, args[0], deepest)) return NULL;
    at_t from = (at_t)PyBytes_AS_STRING(args[0]), end = NULL;
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    if (size < 10 || memcmp(from, "data: {", 7) || memcmp(from + size - 3, "}\n\n", 3) || deepest < 1) Py_RETURN_NONE;
    if (memchr(from, '\n', (size_t)size - 2) || memchr(from, '\r', (size_t)size)) Py_RETURN_NONE;
    c.p = from + 6, c.end = from + size - 2, c.counts = 1;
    counts of = {NO, NO, NO, 0};
    ends all = {0, 0, 0};
    span key;
    int links = 0;
    if (!take(&c, '{')) Py_RETURN_NONE;
    do {
        if (!name(&c, &key)) Py_RETURN_NONE;
        if (IS(key, "choices")) {
            if (all.seen & 1 || !choices(&c, &all)) Py_RETURN_NONE;
            all.seen |= 1;
        } else if (IS(key, "usage")) {
            if (all.seen & 2 || (!WORD(&c, "null") && !counted(&c, &of, &end))) Py_RETURN_NONE;
            all.seen |= 2;
        } else if (IS(key, "error") || IS(key, "type") || IS(key, "message") || IS(key, "response") || !value(&c, &links)) {
            Py_RETURN_NONE;
        }
    } while (take(&c, ','));
    if (!take(&c, '}') || c.p != c.end) Py_RETURN_NONE;
    if (of.cached > of.prompt) of.cached = of.prompt;
    return Py_BuildValue("(iiiLLL)", c.words, all.finished, all.n, end ? (long long)of.prompt : -2LL, (long long)of.cached,
                         (long long)of.completion);
}

static PyMethodDef methods[] = {
    {"event_of", (PyCFunction)(void (*)(void))event_of, METH_FASTCALL, NULL},
    {"seen_of", (PyCFunction)(void (*)(void))seen_of, METH_FASTCALL, NULL},
    {"usage_of", (PyCFunction)(void (*)(void))usage_of, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "glance_c", "See glance.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_glance_c(void) { return PyModule_Create(&module); }
