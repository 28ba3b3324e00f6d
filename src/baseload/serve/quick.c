/* quick.py in C: the same functions, faster. `make native` builds it, tests/serve/test_quick.py holds both to each other.
 *
 * Pure functions of bytes and numbers; nothing here decides about money or law. Whatever is not the common case is answered
 * with "look closer" (False, -2), as in Python, and looked at there.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define EXPECT(name, want)                                                                     \
    if (n != (want)) {                                                                         \
        PyErr_Format(PyExc_TypeError, name "() takes %d arguments (%zd given)", (want), n);    \
        return NULL;                                                                           \
    }

typedef struct {
    const unsigned char *at;
    Py_ssize_t n;
} piece;

static int as_piece(PyObject *from, piece *to) {
    char *at;
    if (PyBytes_AsStringAndSize(from, &at, &to->n) < 0) return 0;
    to->at = (const unsigned char *)at;
    return 1;
}

static int begins(piece whole, Py_ssize_t at, piece with) {
    return at >= 0 && whole.n - at >= with.n && memcmp(whole.at + at, with.at, (size_t)with.n) == 0;
}

/* ---- heads ------------------------------------------------------------------------------------------------------ */

static PyObject *body_at(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("body_at", 3)
    piece data, prefix, suffix;
    if (!as_piece(args[0], &data) || !as_piece(args[1], &prefix) || !as_piece(args[2], &suffix)) return NULL;
    if (!begins(data, 0, prefix)) return PyLong_FromLong(-1);
    Py_ssize_t at = prefix.n, length = 0;
    while (at < data.n && at - prefix.n < 16 && data.at[at] >= '0' && data.at[at] <= '9') length = length * 10 + data.at[at++] - '0';
    if (at == prefix.n || at - prefix.n > 15 || at >= data.n || data.at[at] != '\r' || !begins(data, at, suffix)) return PyLong_FromLong(-1);
    at += suffix.n;
    return PyLong_FromSsize_t(data.n - at == length ? at : -1);
}

static Py_ssize_t chunk_begins(const unsigned char *p, const unsigned char *end, Py_ssize_t *size) {
    const unsigned char *from = p;
    int low = 0, high = 0;
    for (*size = 0; p < end && p - from < 8; p++) {
        if (*p >= '0' && *p <= '9') *size = *size * 16 + *p - '0';
        else if (*p >= 'a' && *p <= 'f') *size = *size * 16 + *p - 'a' + 10, low = 1;
        else if (*p >= 'A' && *p <= 'F') *size = *size * 16 + *p - 'A' + 10, high = 1;
        else break;
    }
    if (p == from || *from == '0' || (low && high) || end - p < 2 || p[0] != '\r' || p[1] != '\n') return -1;
    Py_ssize_t at = p + 2 - from;
    if (end - from - at - 2 < *size || from[at + *size] != '\r' || from[at + *size + 1] != '\n') return -1;
    return at;
}

static PyObject *chunks_of(PyObject *self, PyObject *data) {
    piece of;
    if (!as_piece(data, &of)) return NULL;
    PyObject *found = PyList_New(0);
    for (Py_ssize_t from = 0, size; found && from < of.n;) {
        Py_ssize_t at = chunk_begins(of.at + from, of.at + of.n, &size), ends[2] = {from + at, from + at + size};
        if (at < 0) return PyList_SetSlice(found, 0, PyList_GET_SIZE(found), NULL) < 0 ? (Py_DECREF(found), NULL) : found;
        for (int i = 0; found && i < 2; i++) {
            PyObject *number = PyLong_FromSsize_t(ends[i]);
            if (!number || PyList_Append(found, number) < 0) Py_CLEAR(found);
            Py_XDECREF(number);
        }
        from += at + size + 2;
    }
    return found;
}

static PyObject *request_name(PyObject *self, PyObject *request_id) {
    uint64_t id = PyLong_AsUnsignedLongLong(request_id);
    if (id == (uint64_t)-1 && PyErr_Occurred()) return NULL;
    char name[20] = {'r', 'e', 'q', '-'};
    for (int i = 19; i > 3; i--, id >>= 4) name[i] = "0123456789abcdef"[id & 15];
    return PyBytes_FromStringAndSize(name, 20);
}

/* ---- bodies ----------------------------------------------------------------------------------------------------- */

static const char *const JUDGED[] = {
    "n", "model", "input", "stream", "prompt", "best_of", "messages", "max_tokens", "stream_options", "max_output_tokens",
    "max_completion_tokens",
    "api_key", "api_base", "base_url", "model_list", "prompt_embeds", "litellm_params", "custom_llm_provider",
};
#define N_ONCE 11 /* the first may stand there once, the others not at all */
#define N_JUDGED ((int)(sizeof JUDGED / sizeof *JUDGED))
static unsigned char judged_n[N_JUDGED];
static uint64_t judged_lengths;

static int same_letters(const char *small, const unsigned char *p, size_t k) { /* small or not; '_' is no letter */
    for (; k--; small++, p++)
        if (*p != (unsigned char)*small && (*p < 'A' || *p > 'Z' || *p + 32 != *small)) return 0;
    return 1;
}

static int hex4(const unsigned char *p, const unsigned char *end) { /* -1: they are none */
    int value = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        unsigned char c = p[i];
        if (c >= '0' && c <= '9') value = value * 16 + c - '0';
        else if ((c | 32) >= 'a' && (c | 32) <= 'f') value = value * 16 + (c | 32) - 'a' + 10;
        else return -1;
    }
    return value;
}

/* Behind an escape that hides nothing; NULL: it may, or is half of a pair. `p` is its backslash. */
static const unsigned char *escape_end(const unsigned char *p, const unsigned char *end) {
    if (end - p < 2) return NULL;
    if (p[1] != 'u') return p + 2;
    int code = hex4(p + 2, end);
    if (code < 0 || (code >= 0xDC00 && code < 0xE000)) return NULL;
    if ((code >= '0' && code <= ':') || code == '_' || ((code | 32) >= 'a' && (code | 32) <= 'z')) return NULL;
    if (code < 0xD800 || code >= 0xE000) return p + 6;
    int low = end - p >= 8 && p[6] == '\\' && p[7] == 'u' ? hex4(p + 8, end) : -1;
    return low >= 0xDC00 && low < 0xE000 ? p + 12 : NULL;
}

static int key_is_plain(const unsigned char *from, size_t k, uint32_t *seen) {
    for (size_t i = 0; i < k; i++)
        if (from[i] >= 0x80) return 0;
    if (k >= 64 || !(judged_lengths >> k & 1)) return 1;
    for (int i = 0; i < N_JUDGED; i++)
        if (judged_n[i] == k && same_letters(JUDGED[i], from, k)) {
            if (i >= N_ONCE || (*seen >> i & 1) || memcmp(JUDGED[i], from, k)) return 0;
            *seen |= 1u << i;
        }
    return 1;
}

static PyObject *is_plain(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("is_plain", 2)
    piece body;
    if (!as_piece(args[0], &body)) return NULL;
    Py_ssize_t deepest = PyLong_AsSsize_t(args[1]), depth = 0;
    if (deepest == -1 && PyErr_Occurred()) return NULL;
    const unsigned char *p = body.at, *end = body.at + body.n;
    int key_next = 0, link = 0;
    uint32_t seen = 0;
    for (; p < end; p++) {
        if (*p == '{' || *p == '[') {
            if (++depth > deepest) return PyLong_FromLong(0);
            key_next = *p == '{' && depth == 1;
        } else if (*p == '}' || *p == ']') {
            depth--;
        } else if (*p == ',' && depth == 1) {
            key_next = 1;
        } else if (*p == '"') {
            const unsigned char *from = ++p;
            int escapes = 0;
            for (;;) {
                const unsigned char *q = p < end ? memchr(p, '"', (size_t)(end - p)) : NULL;
                if (!q) return PyLong_FromLong(0);
                const unsigned char *b = memchr(p, '\\', (size_t)(q - p));
                p = q;
                if (!b) break;
                escapes = 1;
                if (!(p = escape_end(b, end))) return PyLong_FromLong(0);
            }
            link |= p - from >= 3 && same_letters("url", p - 3, 3);
            if (key_next && depth == 1 && (escapes || !key_is_plain(from, (size_t)(p - from), &seen))) return PyLong_FromLong(0);
            key_next = 0;
        }
    }
    return PyLong_FromLong(link ? 2 : 1);
}

/* ---- prefixes: BLAKE2b (RFC 7693), keyed, 8 bytes ------------------------------------------------------------------ */

static const uint64_t IV[8] = {
    0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
    0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL,
};
static const uint8_t SIGMA[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
};

static inline uint64_t rotated(uint64_t x, int by) { return x >> by | x << (64 - by); }

#define MIX(a, b, c, d, x, y)                                                     \
    v[a] += v[b] + (x), v[d] = rotated(v[d] ^ v[a], 32), v[c] += v[d], v[b] = rotated(v[b] ^ v[c], 24), \
    v[a] += v[b] + (y), v[d] = rotated(v[d] ^ v[a], 16), v[c] += v[d], v[b] = rotated(v[b] ^ v[c], 63)

static void compress(uint64_t h[8], const unsigned char *block, uint64_t bytes, int last) {
    uint64_t v[16], m[16];
    memcpy(m, block, 128); /* little-endian machines only: see PyInit_quick_c */
    memcpy(v, h, 64), memcpy(v + 8, IV, 64);
    v[12] ^= bytes;
    if (last) v[14] = ~v[14];
#pragma GCC unroll 12
    for (int r = 0; r < 12; r++) { /* unrolled, the table is known to the compiler: three times as fast */
        const uint8_t *s = SIGMA[r];
        MIX(0, 4, 8, 12, m[s[0]], m[s[1]]), MIX(1, 5, 9, 13, m[s[2]], m[s[3]]);
        MIX(2, 6, 10, 14, m[s[4]], m[s[5]]), MIX(3, 7, 11, 15, m[s[6]], m[s[7]]);
        MIX(0, 5, 10, 15, m[s[8]], m[s[9]]), MIX(1, 6, 11, 12, m[s[10]], m[s[11]]);
        MIX(2, 7, 8, 13, m[s[12]], m[s[13]]), MIX(3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++) h[i] ^= v[i] ^ v[i + 8];
}

#define BLOCK 512

static PyObject *prefix_hashes(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("prefix_hashes", 3)
    piece text, key;
    if (!as_piece(args[0], &text) || !as_piece(args[1], &key)) return NULL;
    Py_ssize_t most = PyLong_AsSsize_t(args[2]), blocks = text.n / BLOCK;
    if (most == -1 && PyErr_Occurred()) return NULL;
    if (key.n < 1 || key.n > 64) return PyErr_Format(PyExc_ValueError, "a key of 1 to 64 bytes"), NULL;
    if (blocks > most) blocks = most;
    PyObject *found = PyList_New(blocks > 0 ? blocks : 0);
    if (!found) return NULL;
    if (blocks <= 0) return found;
    unsigned char first[128] = {0};
    uint64_t h[8], bytes = 128;
    memcpy(first, key.at, (size_t)key.n);
    memcpy(h, IV, 64);
    h[0] ^= 0x01010000ULL ^ (uint64_t)key.n << 8 ^ 8;
    compress(h, first, bytes, 0);
    for (Py_ssize_t i = 0; i < blocks; i++) {
        const unsigned char *at = text.at + i * BLOCK;
        for (int k = 0; k < BLOCK / 128 - 1; k++) compress(h, at + 128 * k, bytes += 128, 0);
        uint64_t ended[8];
        memcpy(ended, h, 64);
        bytes += 128;
        compress(ended, at + BLOCK - 128, bytes, 1);
        if (i + 1 < blocks) compress(h, at + BLOCK - 128, bytes, 0);
        uint64_t hash = ended[0] & 0x7fffffffffffffffULL;
        PyObject *number = PyLong_FromUnsignedLongLong(hash ? hash : 1);
        if (!number) return Py_DECREF(found), NULL;
        PyList_SET_ITEM(found, i, number);
    }
    return found;
}

/* ---- answers ---------------------------------------------------------------------------------------------------- */

static PyObject *usage_end(PyObject *self, PyObject *event) {
    piece of;
    if (!as_piece(event, &of)) return NULL;
    const unsigned char *end = of.at + of.n, *at = memmem(of.at, (size_t)of.n, "\"usage\"", 7);
    if (!at || end - at < 9 || memcmp(at + 7, ":{", 2) != 0 || memmem(at + 7, (size_t)(end - at - 7), "\"usage\"", 7)) return PyLong_FromLong(-2);
    int quotes = 0;
    for (const unsigned char *p = at + 9; p < end; p++) {
        if (*p == '}') return PyLong_FromSsize_t(quotes % 2 ? -2 : p - of.at);
        if (*p == '{' || *p == '\\') break;
        quotes += *p == '"';
    }
    return PyLong_FromLong(-2);
}

static PyObject *is_like(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("is_like", 5)
    piece data, before, after;
    if (!as_piece(args[0], &data) || !as_piece(args[3], &before) || !as_piece(args[4], &after)) return NULL;
    Py_ssize_t at = PyLong_AsSsize_t(args[1]), end = PyLong_AsSsize_t(args[2]);
    if ((at == -1 || end == -1) && PyErr_Occurred()) return NULL;
    if (at < 0 || end < at || end > data.n || end - at <= before.n + after.n || !begins(data, at, before)) Py_RETURN_FALSE;
    const unsigned char *p = data.at + at + before.n, *stop = data.at + end - after.n;
    if (memcmp(stop, after.at, (size_t)after.n) != 0) Py_RETURN_FALSE;
    const unsigned char *words = p;
    unsigned char all = 0;
    for (; p < stop; all |= *p++)
        if (*p < 32 || *p == '"' || *p == '\\') Py_RETURN_FALSE;
    if (all > 127) {
        PyObject *text = PyUnicode_DecodeUTF8((const char *)words, stop - words, NULL);
        if (!text) {
            PyErr_Clear();
            Py_RETURN_FALSE;
        }
        Py_DECREF(text);
    }
    Py_RETURN_TRUE;
}

/* A float as Python's %.<digits>g writes it; NULL: no memory. `to` has room for 32 letters. */
static char *put_g(char *to, double value, int digits) {
    static const long double TENS[] = {1e0L,  1e1L,  1e2L,  1e3L,  1e4L,  1e5L,  1e6L,  1e7L,  1e8L,  1e9L,
                                       1e10L, 1e11L, 1e12L, 1e13L, 1e14L, 1e15L, 1e16L, 1e17L, 1e18L, 1e19L};
    static const double LEAST[] = {1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0,
                                   1e1,   1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9};
    int power = -10; /* of the first digit */
    if (value >= 1e-10 && value < TENS[digits]) {
        while (power < 9 && value >= LEAST[power + 11]) power++;
        int shift = digits - 1 - power; /* at most 8 + 10; the product is off by half of its last of 64 bits, at most */
        long double scaled = (long double)value * TENS[shift];
        uint64_t whole = (uint64_t)scaled;
        long double rest = scaled - (long double)whole;
        if (rest - 0.5L < 1e-6L && rest - 0.5L > -1e-6L) goto exactly;
        whole += rest > 0.5L;
        if (whole < (uint64_t)TENS[digits - 1]) goto exactly;
        if (whole == (uint64_t)TENS[digits]) whole /= 10, power++;
        if (power >= digits) goto exactly;
        char all[20];
        for (int i = digits; i-- > 0; whole /= 10) all[i] = (char)('0' + whole % 10);
        int n = digits;
        while (n > 1 && all[n - 1] == '0') n--;
        if (power < -4) {
            *to++ = all[0];
            if (n > 1) *to++ = '.', memcpy(to, all + 1, (size_t)(n - 1)), to += n - 1;
            *to++ = 'e', *to++ = '-', *to++ = (char)('0' + -power / 10), *to++ = (char)('0' + -power % 10);
        } else if (power < 0) {
            memcpy(to, "0.0000", (size_t)(1 - power)), to += 1 - power;
            memcpy(to, all, (size_t)n), to += n;
        } else {
            memcpy(to, all, (size_t)(power + 1)), to += power + 1;
            if (n > power + 1) *to++ = '.', memcpy(to, all + power + 1, (size_t)(n - power - 1)), to += n - power - 1;
        }
        return to;
    }
exactly:;
    char *number = PyOS_double_to_string(value, 'g', digits, 0, NULL);
    if (!number) return NULL;
    size_t k = strlen(number);
    if (k > 32) k = 32; /* at 9 digits it never is */
    memcpy(to, number, k);
    PyMem_Free(number);
    return to + k;
}

static PyObject *usage_fields(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("usage_fields", 12)
    static const struct { const char *before; int digits; } said[10] = {
        {"\"cost\":", 9}, {",\"price\":", 9}, {",\"energy_wh\":", 6}, {",\"carbon_g\":", 6},
        {",\"range\":{\"cost\":[", 6}, {",", 6}, {"],\"energy_wh\":[", 6}, {",", 6}, {"],\"carbon_g\":[", 6}, {",", 6},
    };
    piece currency, methods;
    if (!as_piece(args[10], &currency) || !as_piece(args[11], &methods)) return NULL;
    char out[768], *to = out;
    PyObject *head = NULL;
    for (int i = 0; i < 10; i++) {
        double value = PyFloat_AsDouble(args[i]);
        if (value == -1.0 && PyErr_Occurred()) return Py_XDECREF(head), NULL;
        if (i == 4) { /* between the values and their ranges stand texts of any length */
            head = PyBytes_FromStringAndSize(NULL, (to - out) + currency.n + methods.n + 37);
            if (!head) return NULL;
            char *into = PyBytes_AS_STRING(head);
            memcpy(into, out, (size_t)(to - out)), into += to - out;
            memcpy(into, ",\"baseload\":{\"currency\":\"", 25), into += 25;
            memcpy(into, currency.at, (size_t)currency.n), into += currency.n;
            memcpy(into, "\",\"method\":", 11), into += 11;
            memcpy(into, methods.at, (size_t)methods.n), into += methods.n;
            *into = 0;
            if (_PyBytes_Resize(&head, into - PyBytes_AS_STRING(head)) < 0) return NULL;
            to = out;
        }
        size_t k = strlen(said[i].before);
        memcpy(to, said[i].before, k), to += k;
        if (!(to = put_g(to, value, said[i].digits))) return Py_XDECREF(head), NULL;
    }
    memcpy(to, "]},\"provisional\":true}", 22), to += 22;
    Py_ssize_t before = PyBytes_GET_SIZE(head);
    if (_PyBytes_Resize(&head, before + (to - out)) < 0) return NULL;
    memcpy(PyBytes_AS_STRING(head) + before, out, (size_t)(to - out));
    return head;
}

/* ---- marks ------------------------------------------------------------------------------------------------------ */

#define SLOT 128
#define OPENED 64 /* bytes of what is said at the beginning, without its sum */
static uint32_t crc_of[256];

static uint32_t crc(const unsigned char *at, size_t n) {
    uint32_t c = 0xffffffffu;
    while (n--) c = crc_of[(c ^ *at++) & 255] ^ c >> 8;
    return ~c;
}

static uint32_t tied(uint64_t value, uint64_t request_id) {
    return (uint32_t)(value * 2654435761ULL + request_id * 40503ULL + 0x9E37ULL) | 1u;
}

static unsigned char *slot_of(PyObject *const *args, Py_buffer *view, uint64_t *numbers, Py_ssize_t n) {
    for (Py_ssize_t i = 1; i < n; i++) {
        numbers[i] = PyLong_AsUnsignedLongLongMask(args[i]); /* as many bits as the field has */
        if (numbers[i] == (uint64_t)-1 && PyErr_Occurred()) return NULL;
    }
    if (PyObject_GetBuffer(args[0], view, PyBUF_WRITABLE) < 0) return NULL;
    if (numbers[1] >= (uint64_t)(view->len / SLOT)) {
        PyBuffer_Release(view);
        PyErr_SetString(PyExc_IndexError, "no such slot");
        return NULL;
    }
    return (unsigned char *)view->buf + numbers[1] * SLOT;
}

static PyObject *write_opened(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("write_opened", 13)
    Py_buffer view;
    uint64_t x[13];
    unsigned char *to = slot_of(args, &view, x, n), made[SLOT] = {0};
    if (!to) return NULL;
    memcpy(made, x + 2, 40); /* id, arrival, three prices */
    uint32_t wide[2] = {(uint32_t)x[7], (uint32_t)x[8]};
    uint16_t narrow[4] = {(uint16_t)x[9], (uint16_t)x[10], (uint16_t)x[11], (uint16_t)x[12]};
    memcpy(made + 40, wide, 8), memcpy(made + 48, narrow, 8);
    uint32_t sum = crc(made, 56);
    memcpy(made + 56, &sum, 4);
    memcpy(to, made, SLOT);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *write_count(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("write_count", 4)
    Py_buffer view;
    uint64_t x[4];
    for (int i = 1; i < 4; i++) {
        x[i] = PyLong_AsUnsignedLongLongMask(args[i]);
        if (x[i] == (uint64_t)-1 && PyErr_Occurred()) return NULL;
    }
    if (PyObject_GetBuffer(args[0], &view, PyBUF_WRITABLE) < 0) return NULL;
    if (x[1] >= (uint64_t)(view.len / 8)) {
        PyBuffer_Release(&view);
        return PyErr_SetString(PyExc_IndexError, "no such cell"), NULL;
    }
    uint64_t cell = (x[2] & 0xffffffffu) | (uint64_t)tied(x[2] & 0xffffffffu, x[3]) << 32;
    memcpy((unsigned char *)view.buf + x[1] * 8, &cell, 8);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *write_replica(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("write_replica", 4)
    Py_buffer view;
    uint64_t x[4];
    unsigned char *to = slot_of(args, &view, x, n);
    if (!to) return NULL;
    uint64_t cell = (x[3] + 1) | (uint64_t)tied(x[3] + 1, x[2]) << 32;
    memcpy(to + 96, &cell, 8);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *write_final(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    EXPECT("write_final", 7)
    Py_buffer view;
    uint64_t x[7];
    unsigned char *to = slot_of(args, &view, x, n);
    if (!to) return NULL;
    if ((x[4] | x[5] | x[6]) >> 32) {
        PyBuffer_Release(&view);
        return PyErr_SetString(PyExc_OverflowError, "a count of more than 32 bits"), NULL;
    }
    uint32_t rest[4] = {(uint32_t)x[4], (uint32_t)x[5], (uint32_t)x[6], 0};
    rest[3] = tied(x[3] ^ (uint64_t)rest[0] << 3 ^ (uint64_t)rest[1] << 17 ^ (uint64_t)rest[2] << 31, x[2]);
    memcpy(to + 104, x + 3, 8), memcpy(to + 112, rest, 16);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"body_at", (PyCFunction)(void *)body_at, METH_FASTCALL, "See quick.py."},
    {"chunks_of", chunks_of, METH_O, "See quick.py."},
    {"request_name", request_name, METH_O, "See quick.py."},
    {"is_plain", (PyCFunction)(void *)is_plain, METH_FASTCALL, "See quick.py."},
    {"prefix_hashes", (PyCFunction)(void *)prefix_hashes, METH_FASTCALL, "See quick.py."},
    {"usage_end", usage_end, METH_O, "See quick.py."},
    {"is_like", (PyCFunction)(void *)is_like, METH_FASTCALL, "See quick.py."},
    {"usage_fields", (PyCFunction)(void *)usage_fields, METH_FASTCALL, "See quick.py."},
    {"write_opened", (PyCFunction)(void *)write_opened, METH_FASTCALL, "See quick.py."},
    {"write_count", (PyCFunction)(void *)write_count, METH_FASTCALL, "See quick.py."},
    {"write_replica", (PyCFunction)(void *)write_replica, METH_FASTCALL, "See quick.py."},
    {"write_final", (PyCFunction)(void *)write_final, METH_FASTCALL, "See quick.py."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "quick_c", "See quick.py.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_quick_c(void) {
#if PY_BIG_ENDIAN
    PyErr_SetString(PyExc_ImportError, "quick.c is for little-endian machines");
    return NULL;
#endif
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        crc_of[i] = c;
    }
    for (int i = 0; i < N_JUDGED; i++) judged_n[i] = (unsigned char)strlen(JUDGED[i]), judged_lengths |= 1ULL << judged_n[i];
    return PyModule_Create(&module);
}
