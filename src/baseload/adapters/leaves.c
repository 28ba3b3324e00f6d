/* leaves.py in C: the same function, faster, on processors that compute SHA-256 themselves (x86-64 with SHA extensions).
 *
 * Elsewhere the module is empty, and the Python is taken. tests/adapters/test_leaves.py holds both to each other.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define HASH 32
#define LEVELS 63

static const uint32_t K[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* FIPS 180-4 over whole blocks, by the processor's own instructions; `digest` gets the result, most significant byte first. */
__attribute__((target("sha,sse4.1"))) static void sha256_blocks(const unsigned char *p, size_t n_blocks, unsigned char *digest) {
    const __m128i turn = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i abef = _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c);
    __m128i cdgh = _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19);
    for (; n_blocks > 0; n_blocks--, p += 64) {
        const __m128i abef_was = abef, cdgh_was = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++) w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(p + 16 * i)), turn);
#pragma GCC unroll 16
        for (int g = 0; g < 16; g++) { /* four rounds each */
            __m128i k = _mm_add_epi32(w[g & 3], _mm_load_si128((const __m128i *)(const void *)(K + 4 * g)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0E));
            if (g < 12) {
                __m128i next = _mm_sha256msg1_epu32(w[g & 3], w[(g + 1) & 3]);
                next = _mm_add_epi32(next, _mm_alignr_epi8(w[(g + 3) & 3], w[(g + 2) & 3], 4));
                w[g & 3] = _mm_sha256msg2_epu32(next, w[(g + 3) & 3]);
            }
        }
        abef = _mm_add_epi32(abef, abef_was);
        cdgh = _mm_add_epi32(cdgh, cdgh_was);
    }
    const __m128i feba = _mm_shuffle_epi32(abef, 0x1B), dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)(void *)digest, _mm_shuffle_epi8(_mm_blend_epi16(feba, dchg, 0xF0), turn));
    _mm_storeu_si128((__m128i *)(void *)(digest + 16), _mm_shuffle_epi8(_mm_alignr_epi8(dchg, feba, 8), turn));
}

/* `n` bytes stand in `room`, which holds 72 more: pad them as FIPS 180-4 says, and hash. */
static void hash_in(unsigned char *room, size_t n, unsigned char *digest) {
    size_t n_blocks = (n + 8) / 64 + 1;
    memset(room + n, 0, n_blocks * 64 - n);
    room[n] = 0x80;
    for (int i = 0; i < 8; i++) room[n_blocks * 64 - 1 - (size_t)i] = (unsigned char)((uint64_t)n * 8 >> 8 * i);
    sha256_blocks(room, n_blocks, digest);
}

typedef struct {
    unsigned char *at;
    size_t n;
} room;

static int leaf_of(room *r, PyObject *body, unsigned char *leaf) {
    char *from;
    Py_ssize_t n;
    if (PyBytes_AsStringAndSize(body, &from, &n) < 0) return 0;
    if (r->n < (size_t)n + 73) {
        unsigned char *more = PyMem_Realloc(r->at, (size_t)n + 4096);
        if (!more) return PyErr_NoMemory(), 0;
        r->at = more, r->n = (size_t)n + 4096;
    }
    r->at[0] = 0x00;
    memcpy(r->at + 1, from, (size_t)n);
    hash_in(r->at, (size_t)n + 1, leaf);
    return 1;
}

static PyObject *bytes_of(const unsigned char *hash) { return PyBytes_FromStringAndSize((const char *)hash, HASH); }

static int note(PyObject *nodes, int level, long long i, const unsigned char *hash) {
    PyObject *node = Py_BuildValue("(iLy#)", level, i, (const char *)hash, (Py_ssize_t)HASH);
    int done = node && PyList_Append(nodes, node) == 0;
    Py_XDECREF(node);
    return done;
}

/* A row as it is stored; steals nothing. */
static PyObject *stored(long long seq, PyObject *kind, PyObject *id, const unsigned char *leaf, PyObject *body) {
    PyObject *row = PyTuple_New(5), *place = PyLong_FromLongLong(seq), *hash = bytes_of(leaf);
    if (!row || !place || !hash) return Py_XDECREF(row), Py_XDECREF(place), Py_XDECREF(hash), NULL;
    PyTuple_SET_ITEM(row, 0, place);
    PyTuple_SET_ITEM(row, 1, Py_NewRef(kind));
    PyTuple_SET_ITEM(row, 2, Py_NewRef(id));
    PyTuple_SET_ITEM(row, 3, hash);
    PyTuple_SET_ITEM(row, 4, Py_NewRef(body));
    return row;
}

static int grown(long long size, PyObject *kind, PyObject *ids, PyObject *bodies, long least, unsigned char (*edge)[HASH], int *n_edge,
                 PyObject *rows, PyObject *nodes) {
    room r = {NULL, 0};
    int good = 1;
    for (Py_ssize_t at = 0; good && at < PyList_GET_SIZE(bodies); at++) {
        unsigned char leaf[HASH], node[2 * HASH + 1 + 72];
        PyObject *body = PyList_GET_ITEM(bodies, at);
        if (!(good = leaf_of(&r, body, leaf))) break;
        PyObject *row = stored(size + at, kind, PyList_GET_ITEM(ids, at), leaf, body);
        if (!(good = row != NULL)) break;
        PyList_SET_ITEM(rows, at, row);
        int level = 0;
        for (long long i = size + at; good && i & 1;) {
            node[0] = 0x01;
            memcpy(node + 1, edge[--*n_edge], HASH);
            memcpy(node + 1 + HASH, leaf, HASH);
            hash_in(node, 2 * HASH + 1, leaf);
            level++, i >>= 1;
            if (level >= least) good = note(nodes, level, i, leaf);
        }
        memcpy(edge[(*n_edge)++], leaf, HASH);
    }
    PyMem_Free(r.at);
    return good;
}

static PyObject *grow(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    if (n != 6) return PyErr_Format(PyExc_TypeError, "grow() takes 6 arguments (%zd given)", n), NULL;
    unsigned char edge[LEVELS + 1][HASH];
    long long size = PyLong_AsLongLong(args[0]);
    if (size == -1 && PyErr_Occurred()) return NULL;
    long least = PyLong_AsLong(args[5]);
    if (least == -1 && PyErr_Occurred()) return NULL;
    PyObject *peaks = args[1], *ids = args[3], *bodies = args[4];
    if (!PyList_Check(peaks) || !PyList_Check(ids) || !PyList_Check(bodies)) return PyErr_SetString(PyExc_TypeError, "lists are wanted"), NULL;
    int n_edge = (int)PyList_GET_SIZE(peaks);
    if (size < 0 || size > LLONG_MAX / 2 || PyList_GET_SIZE(ids) != PyList_GET_SIZE(bodies) ||
        PyList_GET_SIZE(peaks) != __builtin_popcountll((unsigned long long)size))
        return PyErr_SetString(PyExc_AssertionError, "a tree of another size"), NULL;
    for (int i = 0; i < n_edge; i++) {
        char *from;
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(PyList_GET_ITEM(peaks, i), &from, &length) < 0) return NULL;
        if (length != HASH) return PyErr_SetString(PyExc_AssertionError, "a hash of another length"), NULL;
        memcpy(edge[i], from, HASH);
    }
    PyObject *rows = PyList_New(PyList_GET_SIZE(bodies)), *nodes = PyList_New(0), *after = NULL;
    if (rows && nodes && grown(size, args[2], ids, bodies, least, edge, &n_edge, rows, nodes)) after = PyList_New(n_edge);
    for (int i = 0; after && i < n_edge; i++) {
        PyObject *peak = bytes_of(edge[i]);
        if (!peak) {
            Py_CLEAR(after);
            break;
        }
        PyList_SET_ITEM(after, i, peak);
    }
    PyObject *all = after ? PyTuple_Pack(3, rows, nodes, after) : NULL;
    Py_XDECREF(rows), Py_XDECREF(nodes), Py_XDECREF(after);
    return all;
}

static int computes_sha256(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1) || !(c & bit_SSSE3)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1;
}

static PyMethodDef methods[] = {{"grow", (PyCFunction)(void (*)(void))grow, METH_FASTCALL, NULL}, {NULL, NULL, 0, NULL}};
#define METHODS (computes_sha256() ? methods : NULL)
#else
#define METHODS NULL
#endif

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "leaves_c", "See leaves.py.", -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_leaves_c(void) {
    module.m_methods = METHODS;
    return PyModule_Create(&module);
}
