// The inner loops, compiled once for each instruction set with PRUNUS_LEVEL and PRUNUS_LANES set by the build.
// Vector extensions of GCC and Clang: the same text becomes SSE2, AVX2, AVX-512 or NEON.
#include "matrix.hpp"

#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PRUNUS_JOIN2(a, b) a##b
#define PRUNUS_JOIN(a, b) PRUNUS_JOIN2(a, b)
#define PRUNUS_TEXT2(a) #a
#define PRUNUS_TEXT(a) PRUNUS_TEXT2(a)
#define INLINE inline __attribute__((always_inline))

namespace prunus {
namespace PRUNUS_LEVEL {
namespace {

constexpr int VL = PRUNUS_LANES;
typedef float Vec __attribute__((vector_size(4 * PRUNUS_LANES), aligned(4), may_alias));
constexpr int kVectors = VL >= 8 ? kWidest / VL : 8;  // of the widest panel: as many accumulators
constexpr int kPanel = kVectors * VL;
// Of weights in blocks: four rows of sums, their inputs and a weight are 16 registers.
constexpr int kBlockPanel = 3 * VL;
constexpr int wide_of(const Matrix &m) { return m.layout == kBlocks ? kBlockPanel : kPanel; }

INLINE Vec load(const float *p) { return *reinterpret_cast<const Vec *>(p); }
INLINE void save(float *p, Vec v) { *reinterpret_cast<Vec *>(p) = v; }
INLINE float as_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
INLINE uint32_t as_bits(float f) { uint32_t b; memcpy(&b, &f, 4); return b; }
INLINE float widened(float v) { return v; }
INLINE float widened(uint16_t v) { return as_float(uint32_t(v) << 16); }
INLINE uint16_t rounded(float f) {
    uint32_t b = as_bits(f);
    if ((b & 0x7fffffffu) > 0x7f800000u) return uint16_t((b >> 16) | 0x40u);
    return uint16_t((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}
INLINE bool is_special(float f) { return (as_bits(f) & 0x7f800000u) == 0x7f800000u; }

// What is met next, asked for a few lines at a time while the products go on. Their columns are in no order that the
// processor would foresee.
struct Ahead {
    const char *at;
    int64_t left;  // bytes
    int lines;     // at a time
    INLINE void some() {
        for (int i = 0; i < lines && left > 0; i++, at += 64, left -= 64) __builtin_prefetch(at, 0, 2);
    }
};

// Where column k of a tile lies in a panel.
struct Straight {
    const float *data;
    int64_t width;
    INLINE const float *operator()(int64_t k) const { return data + k * width; }
};
struct Looked {
    const float *data;
    const int32_t *table;
    INLINE const float *operator()(int64_t k) const { return data + table[k]; }
};

template <int NV>
struct Sum {
    Vec v[NV];
    INLINE void from(const float *p, bool fresh) {
        for (int i = 0; i < NV; i++) v[i] = fresh ? Vec{} : load(p + i * VL);
    }
    INLINE void zero() { for (int i = 0; i < NV; i++) v[i] = Vec{}; }
    INLINE void to(float *p) const { for (int i = 0; i < NV; i++) save(p + i * VL, v[i]); }
    INLINE void add(const Sum &o) { for (int i = 0; i < NV; i++) v[i] += o.v[i]; }
    INLINE void take(float w, const float *x) { for (int i = 0; i < NV; i++) v[i] += w * load(x + i * VL); }
};

// One row of a tile times one panel. Narrow panels keep several sums, or each addition would wait for the last.
template <int NV, int STEP, class V, class I, class At>
INLINE void list_row(const V *v, const I *index, int n, At at, float *out, bool fresh) {
    constexpr int S = NV >= 8 ? 1 : NV >= 4 ? 2 : 4;
    Sum<NV> sum[S];
    sum[0].from(out, fresh);
    for (int s = 1; s < S; s++) sum[s].zero();
    int j = 0;
    for (; j + S <= n; j += S)
        for (int s = 0; s < S; s++) sum[s].take(widened(v[(j + s) * STEP]), at(index[(j + s) * STEP]));
    for (; j < n; j++) sum[0].take(widened(v[j * STEP]), at(index[j * STEP]));
    for (int s = 1; s < S; s++) sum[0].add(sum[s]);
    sum[0].to(out);
}

template <int NV, class V, class I, class At>
void lists(const Matrix &m, int64_t block, int64_t t, int rows, At at, float *out, bool fresh) {
    const int64_t slot = block * ((m.cols + m.tile - 1) / m.tile) + t;
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const I *index = reinterpret_cast<const I *>(m.index) + m.starts[slot];
    const I *counts = reinterpret_cast<const I *>(m.counts) + slot * kRows;
    for (int r = 0; r < rows; r++) {
        const int n = counts[r];
        list_row<NV, 1>(v, index, n, at, out + r * kPanel, fresh);
        v += n;
        index += n;
    }
}

template <int NV, class V, class I, class At>
void lanes(const Matrix &m, int64_t block, int64_t t, int rows, At at, float *out, bool fresh) {
    const int64_t slot = block * ((m.cols + m.tile - 1) / m.tile) + t;
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const I *index = reinterpret_cast<const I *>(m.index) + m.starts[slot];
    const I *counts = reinterpret_cast<const I *>(m.counts) + slot * 2 * kRows, *order = counts + kRows;
    for (int r = 0, steps = 0; r < rows; r++) {
        const int lane = r % kAbreast;
        if (lane == 0) v += steps * kAbreast, index += steps * kAbreast, steps = counts[r];
        list_row<NV, kAbreast>(v + lane, index + lane, counts[r], at, out + order[r] * kPanel, fresh);
    }
}

template <int NV, class V, class At>
void bits(const Matrix &m, int64_t block, int64_t t, int rows, At at, float *out, bool fresh) {
    const int64_t slot = block * ((m.cols + m.tile - 1) / m.tile) + t;
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const int words = m.tile / 64;
    const uint8_t *mask = m.index + slot * kRows * (m.tile / 8);
    for (int r = 0; r < rows; r++) {
        Sum<NV> sum;
        sum.from(out + r * kPanel, fresh);
        for (int w = 0; w < words; w++, mask += 8) {
            uint64_t left;
            memcpy(&left, mask, 8);
            const int64_t base = w * 64;
            for (; left; left &= left - 1) sum.take(widened(*v++), at(base + __builtin_ctzll(left)));
        }
        sum.to(out + r * kPanel);
    }
}

// Four rows that share their columns times a panel of NV vectors, of which a register each holds the sums.
template <int NV, class V, class I, class At>
INLINE void four_rows(const V *v, int step, const I *index, int n, At at, float *out, bool fresh) {
    constexpr int W = kBlockPanel;
    Sum<NV> a, b, c, d;
    a.from(out, fresh), b.from(out + W, fresh), c.from(out + 2 * W, fresh), d.from(out + 3 * W, fresh);
    for (int j = 0; j < n; j++, v += step) {
        const float *x = at(index[j]);
        Vec in[NV];
        for (int i = 0; i < NV; i++) in[i] = load(x + i * VL);
        const float p = widened(v[0]), q = widened(v[1]), r = widened(v[2]), s = widened(v[3]);
        for (int i = 0; i < NV; i++) a.v[i] += p * in[i];
        for (int i = 0; i < NV; i++) b.v[i] += q * in[i];
        for (int i = 0; i < NV; i++) c.v[i] += r * in[i];
        for (int i = 0; i < NV; i++) d.v[i] += s * in[i];
    }
    a.to(out), b.to(out + W), c.to(out + 2 * W), d.to(out + 3 * W);
}

template <int NV, class V, class I, class At>
void blocks(const Matrix &m, int64_t block, int64_t t, int rows, At at, float *out, bool fresh, Ahead &ahead) {
    const int64_t slot = block * ((m.cols + m.tile - 1) / m.tile) + t;
    const int R = m.block;
    const V *v = static_cast<const V *>(m.values) + m.starts[slot] * R;
    const I *index = reinterpret_cast<const I *>(m.index) + m.starts[slot];
    const I *counts = reinterpret_cast<const I *>(m.counts) + slot * (kRows / R);
    for (int g = 0; g * R < rows; g++) {
        const int n = counts[g];
        for (int r = 0; r < R; r += 4) {
            ahead.some();
            four_rows<NV>(v + r, R, index, n, at, out + (g * R + r) * kBlockPanel, fresh);
        }
        v += int64_t(n) * R;
        index += n;
    }
}

// An index or a count.
INLINE int number(const Matrix &m, const uint8_t *from, int64_t i) {
    return m.wide ? reinterpret_cast<const uint16_t *>(from)[i] : from[i];
}

// Every column that has no value in a row, times zero: what a dense product adds where x is NaN or infinite.
// visit(row of the block, column, ) is called for these.
template <class F>
void absent(const Matrix &m, int64_t block, int rows, F visit) {
    const int64_t tiles = (m.cols + m.tile - 1) / m.tile;
    const int R = m.layout == kBlocks ? m.block : 1;
    uint64_t seen[512];  // tiles have at most 32768 columns
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t slot = block * tiles + t, first = t * m.tile;
        const int64_t here = m.cols - first < m.tile ? m.cols - first : m.tile;
        int64_t e = m.starts[slot];
        for (int g = 0; g * R < rows; g++) {
            memset(seen, 0, size_t(m.tile + 63) / 64 * 8);
            int row = g;
            if (m.layout == kBits) {
                memcpy(seen, m.index + (slot * kRows + g) * (m.tile / 8), m.tile / 8);
            } else if (m.layout == kLanes) {
                const int64_t place = slot * 2 * kRows + g;
                const int n = number(m, m.counts, place), lane = g % kAbreast;
                row = number(m, m.counts, place + kRows);
                for (int j = 0; j < n; j++) {
                    const int k = number(m, m.index, e + j * kAbreast + lane);
                    seen[k / 64] |= uint64_t(1) << (k % 64);
                }
                if (lane == kAbreast - 1) e += number(m, m.counts, place - lane) * kAbreast;
            } else {
                const int64_t place = slot * (kRows / R) + g;
                const int n = number(m, m.counts, place);
                for (int j = 0; j < n; j++, e++) {
                    const int k = number(m, m.index, e);
                    seen[k / 64] |= uint64_t(1) << (k % 64);
                }
            }
            for (int64_t k = 0; k < here; k++)
                if (!(seen[k / 64] >> (k % 64) & 1))
                    for (int r = row * R; r < row * R + R && r < rows; r++) visit(r, first + k);
        }
    }
}

template <int NV, class V, class At>
void tile_times(const Matrix &m, int64_t block, int64_t t, int rows, At at, float *out, bool fresh, Ahead &ahead) {
    if constexpr (NV * VL <= kBlockPanel) {
        if (m.layout == kBlocks && m.wide) return blocks<NV, V, uint16_t>(m, block, t, rows, at, out, fresh, ahead);
        if (m.layout == kBlocks) return blocks<NV, V, uint8_t>(m, block, t, rows, at, out, fresh, ahead);
    }
    if constexpr (NV != 3) {
        if (m.layout == kBits) return bits<NV, V>(m, block, t, rows, at, out, fresh);
        if (m.layout == kLanes && m.wide) return lanes<NV, V, uint16_t>(m, block, t, rows, at, out, fresh);
        if (m.layout == kLanes) return lanes<NV, V, uint8_t>(m, block, t, rows, at, out, fresh);
        if (m.wide) return lists<NV, V, uint16_t>(m, block, t, rows, at, out, fresh);
        lists<NV, V, uint8_t>(m, block, t, rows, at, out, fresh);
    }
}

template <int NV, class V>
void placed(const Matrix &m, int64_t block, int64_t t, int rows, const Panel &p, float *out, Ahead &ahead) {
    const int64_t first = t * m.tile;
    if (p.table) return tile_times<NV, V>(m, block, t, rows, Looked{p.data, p.table + first}, out, t == 0, ahead);
    tile_times<NV, V>(m, block, t, rows, Straight{p.data + first * (NV * VL), NV * VL}, out, t == 0, ahead);
}

template <class V>
void sized(const Matrix &m, int64_t block, int64_t t, int rows, const Panel &p, float *out, Ahead &ahead) {
    switch (p.width / VL) {
        case 1: return placed<1, V>(m, block, t, rows, p, out, ahead);
        case 2: return placed<2, V>(m, block, t, rows, p, out, ahead);
        case 3: return placed<3, V>(m, block, t, rows, p, out, ahead);
        case 4: return placed<4, V>(m, block, t, rows, p, out, ahead);
        case 8: if constexpr (kVectors >= 8) return placed<8, V>(m, block, t, rows, p, out, ahead);
    }
}

// While `panels[i]` meets tile t: what the next one brings. A panel with a table is in a near cache already.
Ahead ahead_of(const Matrix &m, int64_t tiles, int64_t t, const Panel *panels, int32_t i, int32_t count, int64_t blocks) {
    if (m.layout != kBlocks || panels[i].table) return {nullptr, 0, 0};
    const bool last = i + 1 == count;
    const Panel &p = panels[last ? 0 : i + 1];
    const int64_t first = (!last ? t : t + 1 < tiles ? t + 1 : 0) * m.tile;
    const int64_t bytes = (m.cols - first < m.tile ? m.cols - first : m.tile) * p.width * 4;
    const int64_t times = blocks * kRows / 4;
    return {reinterpret_cast<const char *>(p.data + first * p.width), bytes, int((bytes / 64 + times - 1) / times)};
}

void multiply(const Matrix &m, int64_t block, int64_t end, const Panel *panels, int32_t count, float *out) {
    const int64_t wide = wide_of(m), size = kRows * wide;
    const int64_t tiles = (m.cols + m.tile - 1) / m.tile, blocks = end - block;
    if (!tiles) memset(out, 0, sizeof(float) * size_t(size * blocks * count));
    for (int64_t t = 0; t < tiles; t++)
        for (int32_t i = 0; i < count; i++) {
            Ahead ahead = ahead_of(m, tiles, t, panels, i, count, blocks);
            for (int64_t b = block; b < end; b++) {
                const int rows = int(m.rows - b * kRows < kRows ? m.rows - b * kRows : kRows);
                float *to = out + (i * blocks + b - block) * size;
                if (m.half) sized<uint16_t>(m, b, t, rows, panels[i], to, ahead);
                else sized<float>(m, b, t, rows, panels[i], to, ahead);
            }
        }
    for (int32_t i = 0; i < count; i++)
        for (int64_t b = block; panels[i].special && b < end; b++) {
            const Panel &p = panels[i];
            float *to = out + (i * blocks + b - block) * size;
            const int rows = int(m.rows - b * kRows < kRows ? m.rows - b * kRows : kRows);
            absent(m, b, rows, [&](int r, int64_t k) {
                const float *x = p.data + (p.table ? p.table[k] : k * p.width);
                for (int j = 0; j < p.width; j++) to[r * wide + j] += 0.0f * x[j];
            });
        }
}

#include "single.hpp"

void single(const Matrix &m, int64_t block, const float *x, int32_t special, float *out) {
    const int64_t tiles = (m.cols + m.tile - 1) / m.tile;
    const int rows = int(m.rows - block * kRows < kRows ? m.rows - block * kRows : kRows);
    memset(out, 0, sizeof(float) * kRows);
    for (int64_t t = 0; t < tiles; t++) {
        if (m.half) single_of<uint16_t>(m, block * tiles + t, rows, x + t * m.tile, out);
        else single_of<float>(m, block * tiles + t, rows, x + t * m.tile, out);
    }
    if (special) absent(m, block, rows, [&](int r, int64_t k) { out[r] += 0.0f * x[k]; });
}

#include "around.hpp"

const Level kLevel = {PRUNUS_TEXT(PRUNUS_LEVEL), VL, kPanel, kBlockPanel, multiply, single, turn, widen, pad, finish,
                      store, narrow, place};

}  // namespace
}  // namespace PRUNUS_LEVEL

const Level &PRUNUS_JOIN(level_, PRUNUS_LEVEL)() { return PRUNUS_LEVEL::kLevel; }

}  // namespace prunus
