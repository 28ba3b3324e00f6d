/* A message's settled rows, from MessagePack to canonical JSON in one pass: what settled.py describes.
 *
 * It knows the fields of rows.SettleRow in their order, plain texts, and whole numbers of 64 bits. Whatever is not that is
 * answered with None, and read by msgspec: tests/serve/test_settled.py holds it to that, and its fields to those of the row.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef const unsigned char *at_t;

typedef struct {
    at_t p, end;
} cursor;

typedef struct {
    at_t from;
    size_t n;
} span;

typedef struct {
    char *at;
    size_t n, room;
} text;

enum { WHOLE, WORD, FLAG, COUNTED, LIST, TIME, WHOSE, UNUSED };

typedef struct {
    const char *name;
    size_t n;
    int kind;
} field;
#define F(name, kind) {name, sizeof name - 1, kind}

/* As rows.SettleRow declares them. The order of the eight that are summed is that of SUMMED. */
static const field FIELDS[] = {
    F("request_id", WHOLE),    F("at_ns", TIME),          F("tenant", WHOSE),     F("key", UNUSED),        F("model", WORD),
    F("deployment", WORD),     F("site", WORD),           F("jurisdiction", WORD), F("replica_i", WHOLE),  F("region", WORD),
    F("arrival_ns", WHOLE),    F("first_token_ns", WHOLE), F("finish_ns", WHOLE), F("streamed", FLAG),     F("input_tokens", WHOLE),
    F("cached_tokens", WHOLE), F("output_tokens", WHOLE), F("tokens_from", COUNTED), F("status", WHOLE),   F("reason", WHOLE),
    F("n_tries", WHOLE),       F("price_nano", WHOLE),    F("cost_nano", WHOLE),  F("energy_mj", WHOLE),   F("carbon_ug", WHOLE),
    F("method", WORD),         F("policy", WORD),         F("why", WORD),         F("prefix", LIST),       F("model_digest", WORD),
    F("endpoint", WORD),       F("client_status", WHOLE), F("recovered", FLAG),
};
enum { N_FIELDS = sizeof FIELDS / sizeof *FIELDS };
enum { ID = 0, SITE = 6, STREAMED = 13, STATUS = 18, REASON = 19, CLIENT_STATUS = 31, N_SUMMED = 7 };
static const int SUMMED[N_SUMMED] = {14, 15, 16, 21, 22, 23, 24};

typedef struct {
    int64_t number[N_FIELDS];
    span site;
} facts;

typedef struct {
    PyObject *whose;
    Py_ssize_t first;
    int64_t status, reason, client_status, streamed, n;
    int64_t sums[N_SUMMED];
    span site;
    PyObject *places;
} group;

enum { GROUPS_MOST = 32 };

typedef struct {
    group of[GROUPS_MOST];
    int n, last;
} groups;

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static int spare(text *t, size_t n) {
    if (t->room - t->n >= n) return 1;
    char *more = PyMem_Realloc(t->at, 2 * (t->room + n));
    if (!more) return 0;
    t->at = more, t->room = 2 * (t->room + n);
    return 1;
}

static inline void put(text *t, const void *from, size_t n) {
    memcpy(t->at + t->n, from, n);
    t->n += n;
}

static inline void put_number(text *t, uint64_t value) {
    char digits[20], *at = digits + 20;
    do *--at = (char)('0' + value % 10);
    while (value /= 10);
    put(t, at, (size_t)(digits + 20 - at));
}

static inline void put_whole(text *t, int64_t value) {
    if (value < 0) t->at[t->n++] = '-';
    put_number(t, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static uint64_t big(at_t p, int n) {
    uint64_t value = 0;
    for (int i = 0; i < n; i++) value = value << 8 | p[i];
    return value;
}

/* A whole number; `above`: beyond 2^63, and so none of int64. */
static int whole(cursor *c, int64_t *value, int *above) {
    *above = 0;
    if (c->p >= c->end) return 0;
    unsigned char head = *c->p++;
    if (head < 0x80 || head >= 0xE0) return *value = (int8_t)head, 1;
    if (head < 0xCC || head > 0xD3) return 0;
    int n = 1 << (head & 3);
    if (c->end - c->p < n) return 0;
    uint64_t bits = big(c->p, n);
    c->p += n;
    if (head >= 0xD0 && n < 8 && bits >> (8 * n - 1)) bits |= UINT64_MAX << 8 * n;
    *above = head == 0xCF && bits >> 63;
    memcpy(value, &bits, 8);
    return 1;
}

/* A text in which JSON escapes nothing; UTF-8 that is not ASCII is judged by Python. */
static int word(cursor *c, span *of) {
    if (c->p >= c->end) return 0;
    unsigned char head = *c->p++;
    int n_length = head == 0xD9 ? 1 : head == 0xDA ? 2 : head == 0xDB ? 4 : 0;
    if (!n_length && (head & 0xE0) != 0xA0) return 0;
    if (c->end - c->p < n_length) return 0;
    of->n = n_length ? (size_t)big(c->p, n_length) : head & 0x1FU;
    of->from = c->p += n_length;
    if ((size_t)(c->end - c->p) < of->n) return 0;
    c->p += of->n;
    unsigned char high = 0;
    for (size_t i = 0; i < of->n; i++) {
        unsigned char x = of->from[i];
        if (x < 0x20 || x == '"' || x == '\\') return 0;
        high |= x;
    }
    if (high < 0x80) return 1;
    PyObject *judged = PyUnicode_DecodeUTF8((const char *)of->from, (Py_ssize_t)of->n, NULL);
    if (!judged) PyErr_Clear();
    Py_XDECREF(judged);
    return judged != NULL;
}

static int named(cursor *c, const char *name, size_t n) {
    if ((size_t)(c->end - c->p) < n + 1 || *c->p != (0xA0 | n) || memcmp(c->p + 1, name, n) != 0) return 0;
    c->p += n + 1;
    return 1;
}

static int count_of(cursor *c, unsigned char fixed, unsigned char fixed_mask, unsigned char two_bytes, size_t *n) {
    if (c->p >= c->end) return 0;
    unsigned char head = *c->p++;
    if ((head & ~fixed_mask & 0xFF) == fixed) return *n = head & fixed_mask, 1;
    if (head != two_bytes || c->end - c->p < 2) return 0;
    *n = (size_t)big(c->p, 2);
    c->p += 2;
    return 1;
}

static int list_of(cursor *c, text *t) {
    size_t n;
    if (!count_of(c, 0x90, 0x0F, 0xDC, &n) || !spare(t, 22 * n + 2)) return 0;
    t->at[t->n++] = '[';
    for (size_t i = 0; i < n; i++) {
        int64_t value;
        int above;
        if (!whole(c, &value, &above)) return 0;
        if (i) t->at[t->n++] = ',';
        if (above) put_number(t, (uint64_t)value);
        else put_whole(t, value);
    }
    t->at[t->n++] = ']';
    return 1;
}

static int field_of(cursor *c, int i, text *t, facts *f) {
    span s;
    int above;
    switch (FIELDS[i].kind) {
    case WHOLE:
        if (!whole(c, &f->number[i], &above) || above) return 0;
        put_whole(t, f->number[i]);
        return 1;
    case FLAG:
        if (c->p >= c->end || (*c->p != 0xC2 && *c->p != 0xC3)) return 0;
        f->number[i] = *c->p++ == 0xC3;
        put(t, f->number[i] ? "true" : "false", f->number[i] ? 4 : 5);
        return 1;
    case LIST:
        return list_of(c, t);
    default: /* WORD, COUNTED */
        if (!word(c, &s) || !spare(t, s.n + 2)) return 0;
        if (FIELDS[i].kind == COUNTED && !(s.n == 6 && memcmp(s.from, "engine", 6) == 0) && !(s.n == 7 && memcmp(s.from, "counted", 7) == 0))
            return 0;
        if (i == SITE) f->site = s;
        t->at[t->n++] = '"';
        put(t, s.from, s.n);
        t->at[t->n++] = '"';
        return 1;
    }
}

/* One row: its canonical bytes into `t`, what is added up into `f`; 0 where it is not plain. */
static int row_of(cursor *c, span time, span whose, text *t, facts *f) {
    static const char kind[] = "{\"kind\":\"settle\"";
    size_t n;
    span skipped;
    int64_t number;
    int above;
    t->n = 0;
    if (!count_of(c, 0x80, 0x0F, 0xDE, &n) || n != N_FIELDS + 1 || !named(c, "kind", 4) || !named(c, "settle", 6)) return 0;
    if (!spare(t, sizeof kind)) return 0;
    put(t, kind, sizeof kind - 1);
    for (int i = 0; i < N_FIELDS; i++) {
        size_t n_name = FIELDS[i].n;
        if (!named(c, FIELDS[i].name, n_name)) return 0;
        if (FIELDS[i].kind == UNUSED || FIELDS[i].kind == WHOSE) {
            if (!word(c, &skipped) || (FIELDS[i].kind == WHOSE && !spare(t, whose.n))) return 0;
            if (FIELDS[i].kind == WHOSE) put(t, whose.from, whose.n);
            continue;
        }
        if (!spare(t, n_name + time.n + 32)) return 0;
        put(t, ",\"", 2);
        put(t, FIELDS[i].name, n_name);
        put(t, "\":", 2);
        if (FIELDS[i].kind == TIME) {
            if (!whole(c, &number, &above)) return 0;
            put(t, time.from, time.n);
        } else if (!field_of(c, i, t, f)) {
            return 0;
        }
    }
    if (!spare(t, 1)) return 0;
    t->at[t->n++] = '}';
    return 1;
}

/* ---- adding up -------------------------------------------------------------------------------------------------- */

static int is_of(const group *g, const facts *f, PyObject *whose) {
    return g->whose == whose && g->status == f->number[STATUS] && g->reason == f->number[REASON] &&
           g->client_status == f->number[CLIENT_STATUS] && g->streamed == f->number[STREAMED] && g->site.n == f->site.n &&
           memcmp(g->site.from, f->site.from, f->site.n) == 0;
}

static group *group_of(groups *all, const facts *f, PyObject *whose, Py_ssize_t place) {
    if (all->n && is_of(&all->of[all->last], f, whose)) return &all->of[all->last];
    for (int i = 0; i < all->n; i++)
        if (is_of(&all->of[i], f, whose)) return all->last = i, &all->of[i];
    if (all->n == GROUPS_MOST) return NULL;
    group *g = &all->of[all->last = all->n];
    *g = (group){.whose = whose, .first = place, .status = f->number[STATUS], .reason = f->number[REASON],
                 .client_status = f->number[CLIENT_STATUS], .streamed = f->number[STREAMED], .site = f->site, .places = PyList_New(0)};
    if (!g->places) return NULL;
    all->n++;
    return g;
}

static int add(groups *all, const facts *f, PyObject *whose, Py_ssize_t place) {
    group *g = group_of(all, f, whose, place);
    if (!g) return 0;
    g->n++;
    for (int i = 0; i < N_SUMMED; i++)
        if (__builtin_add_overflow(g->sums[i], f->number[SUMMED[i]], &g->sums[i])) return 0;
    if (!g->streamed) return 1;
    PyObject *which = PyLong_FromSsize_t(place);
    int good = which && PyList_Append(g->places, which) == 0;
    Py_XDECREF(which);
    return good;
}

static PyObject *told(const groups *all) {
    PyObject *list = PyList_New(all->n);
    for (int i = 0; list && i < all->n; i++) {
        const group *g = &all->of[i];
        const int64_t *s = g->sums;
        PyObject *one = Py_BuildValue("(ns#LLLO(LLLLLLLL)O)", g->first, (const char *)g->site.from, (Py_ssize_t)g->site.n, (long long)g->status,
                                      (long long)g->reason, (long long)g->client_status, g->streamed ? Py_True : Py_False, (long long)g->n,
                                      (long long)s[0], (long long)s[1], (long long)s[2], (long long)s[3], (long long)s[4], (long long)s[5],
                                      (long long)s[6], g->places);
        if (!one) return Py_DECREF(list), NULL;
        PyList_SET_ITEM(list, i, one);
    }
    return list;
}

/* ---- what Python calls ------------------------------------------------------------------------------------------ */

static int put_row(PyObject *list, Py_ssize_t place, PyObject *item) {
    if (!item) return 0;
    PyList_SET_ITEM(list, place, item);
    return 1;
}

static PyObject *read_all(cursor *c, span time, PyObject *who, text *t, groups *all) {
    size_t n;
    if (!count_of(c, 0x90, 0x0F, 0xDC, &n) || n != (size_t)PyList_GET_SIZE(who)) return NULL;
    PyObject *ids = PyList_New((Py_ssize_t)n), *bodies = PyList_New((Py_ssize_t)n), *found = NULL, *list = NULL;
    int good = ids && bodies;
    for (Py_ssize_t i = 0; good && i < (Py_ssize_t)n; i++) {
        facts f;
        PyObject *whose = PyList_GET_ITEM(who, i);
        span json;
        char *at;
        Py_ssize_t length;
        good = PyTuple_Check(whose) && PyTuple_GET_SIZE(whose) == 3 && PyBytes_AsStringAndSize(PyTuple_GET_ITEM(whose, 2), &at, &length) == 0;
        if (!good) break;
        json = (span){(at_t)at, (size_t)length};
        good = row_of(c, time, json, t, &f) && put_row(ids, i, PyLong_FromLongLong(f.number[ID])) &&
               put_row(bodies, i, PyBytes_FromStringAndSize(t->at, (Py_ssize_t)t->n)) && add(all, &f, whose, i);
    }
    if (good && c->p == c->end && (list = told(all))) found = PyTuple_Pack(3, ids, bodies, list);
    Py_XDECREF(ids), Py_XDECREF(bodies), Py_XDECREF(list);
    return found;
}

static PyObject *plainly(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (n != 3) return PyErr_Format(PyExc_TypeError, "plainly() takes 3 arguments (%zd given)", n), NULL;
    if (!PyList_Check(args[2])) return PyErr_SetString(PyExc_TypeError, "a list is wanted"), NULL;
    Py_buffer raw;
    char digits[24];
    long long at_ns = PyLong_AsLongLong(args[1]);
    if ((at_ns == -1 && PyErr_Occurred()) || PyObject_GetBuffer(args[0], &raw, PyBUF_SIMPLE) < 0) return NULL;
    cursor c = {raw.buf, (at_t)raw.buf + raw.len};
    span time = {(at_t)digits, (size_t)PyOS_snprintf(digits, sizeof digits, "%lld", at_ns)};
    text t = {NULL, 0, 0};
    groups all;
    all.n = all.last = 0;
    PyObject *found = read_all(&c, time, args[2], &t, &all);
    for (int i = 0; i < all.n; i++) Py_XDECREF(all.of[i].places);
    PyMem_Free(t.at);
    PyBuffer_Release(&raw);
    if (!found && !PyErr_Occurred()) Py_RETURN_NONE;
    return found;
}

static PyObject *mask_of(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (n != 3) return PyErr_Format(PyExc_TypeError, "mask_of() takes 3 arguments (%zd given)", n), NULL;
    if (!PyList_Check(args[0])) return PyErr_SetString(PyExc_TypeError, "a list is wanted"), NULL;
    long long first = PyLong_AsLongLong(args[1]), length = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    if (first < 0 || length < 0 || length > 1 << 24) return PyErr_SetString(PyExc_ValueError, "no lease is like that"), NULL;
    PyObject *mask = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)((length + 7) / 8));
    if (!mask) return NULL;
    unsigned char *bits = (unsigned char *)PyBytes_AS_STRING(mask);
    memset(bits, 0, (size_t)((length + 7) / 8));
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(args[0]); at++) {
        long long id = PyLong_AsLongLong(PyList_GET_ITEM(args[0], at)), i = id - (id < 0 ? 0 : first);
        if (id == -1 && PyErr_Occurred()) return Py_DECREF(mask), NULL;
        if (id < 0 || i < 0 || i >= length || bits[i >> 3] >> (i & 7) & 1) {
            Py_DECREF(mask);
            Py_RETURN_NONE;
        }
        bits[i >> 3] |= (unsigned char)(1U << (i & 7));
    }
    return mask;
}

static PyMethodDef methods[] = {
    {"plainly", (PyCFunction)(void (*)(void))plainly, METH_FASTCALL, NULL},
    {"mask_of", (PyCFunction)(void (*)(void))mask_of, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "settled_c", "See settled.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_settled_c(void) { return PyModule_Create(&module); }
