// The product with one vector, part of level.cpp. Memory is what it waits for, so the weights are read once, in order.
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Half4 __attribute__((vector_size(8), aligned(2), may_alias));
typedef uint16_t Half8 __attribute__((vector_size(16), aligned(2), may_alias));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef int32_t Int8 __attribute__((vector_size(32)));

INLINE Four wide(const float *v, Four *) { return *reinterpret_cast<const Four *>(v); }
INLINE Eight wide(const float *v, Eight *) { return *reinterpret_cast<const Eight *>(v); }
INLINE Four wide(const uint16_t *v, Four *) {
    return (Four)(__builtin_convertvector(*reinterpret_cast<const Half4 *>(v), Int4) << 16);
}
INLINE Eight wide(const uint16_t *v, Eight *) {
    return (Eight)(__builtin_convertvector(*reinterpret_cast<const Half8 *>(v), Int8) << 16);
}

template <class V, class I>
void single_lists(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const I *index = reinterpret_cast<const I *>(m.index) + m.starts[slot];
    const I *counts = reinterpret_cast<const I *>(m.counts) + slot * kRows;
    for (int r = 0; r < rows; r++) {
        const int n = counts[r];
        float a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
        int j = 0;
        for (; j + 8 <= n; j += 8) {
            a += widened(v[j]) * x[index[j]];
            b += widened(v[j + 1]) * x[index[j + 1]];
            c += widened(v[j + 2]) * x[index[j + 2]];
            d += widened(v[j + 3]) * x[index[j + 3]];
            e += widened(v[j + 4]) * x[index[j + 4]];
            f += widened(v[j + 5]) * x[index[j + 5]];
            g += widened(v[j + 6]) * x[index[j + 6]];
            h += widened(v[j + 7]) * x[index[j + 7]];
        }
        for (; j < n; j++) a += widened(v[j]) * x[index[j]];
        out[r] += ((a + b) + (c + d)) + ((e + f) + (g + h));
        v += n;
        index += n;
    }
}

// T holds as many rows as a block has, or half of them.
template <class V, class I, class T, int R>
void single_blocks(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    constexpr int W = sizeof(T) / 4, P = R / W, U = P == 1 ? 4 : 2;
    const V *v = static_cast<const V *>(m.values) + m.starts[slot] * R;
    const I *index = reinterpret_cast<const I *>(m.index) + m.starts[slot];
    const I *counts = reinterpret_cast<const I *>(m.counts) + slot * (kRows / R);
    for (int g = 0; g * R < rows; g++) {
        const int n = counts[g];
        T s[U][P] = {};
        int j = 0;
        for (; j + U <= n; j += U)
            for (int u = 0; u < U; u++)
                for (int p = 0; p < P; p++)
                    s[u][p] += wide(v + (j + u) * R + p * W, static_cast<T *>(nullptr)) * x[index[j + u]];
        for (; j < n; j++)
            for (int p = 0; p < P; p++) s[0][p] += wide(v + j * R + p * W, static_cast<T *>(nullptr)) * x[index[j]];
        for (int u = 1; u < U; u++)
            for (int p = 0; p < P; p++) s[0][p] += s[u][p];
        for (int r = 0; r < R; r++) out[g * R + r] += s[0][r / W][r % W];
        v += int64_t(n) * R;
        index += n;
    }
}

// Each byte of the mask spreads the next values over eight lanes, the others being zero.
#if defined(__AVX512F__)
template <class V>
void single_bits(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const int bytes = m.tile / 8;
    const uint8_t *mask = m.index + slot * kRows * bytes;
    for (int r = 0; r < rows; r++, mask += bytes) {
        __m512 s[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int b = 0; b < bytes; b += 2) {
            uint16_t bits;
            memcpy(&bits, mask + b, 2);
            __m512 w;
            if constexpr (sizeof(V) == 4)
                w = _mm512_loadu_ps(v);
            else
                w = _mm512_castsi512_ps(_mm512_slli_epi32(
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(v))), 16));
            w = _mm512_maskz_expand_ps(bits, w);
            s[b / 2 & 1] = _mm512_fmadd_ps(w, _mm512_loadu_ps(x + b * 8), s[b / 2 & 1]);
            v += __builtin_popcount(bits);
        }
        out[r] += _mm512_reduce_add_ps(_mm512_add_ps(s[0], s[1]));
    }
}
#elif defined(__AVX2__)
// For each byte: which of the next values each lane takes; a negative number for none.
struct Spread {
    int32_t lane[256][8];
    constexpr Spread() : lane() {
        for (int m = 0; m < 256; m++)
            for (int i = 0, n = 0; i < 8; i++) lane[m][i] = m >> i & 1 ? n++ : INT32_MIN;
    }
};
alignas(64) constexpr Spread kSpread;

template <class V>
INLINE __m256 spread(const V *v, uint8_t bits) {
    __m256 w;
    if constexpr (sizeof(V) == 4)
        w = _mm256_loadu_ps(v);
    else
        w = _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(v))), 16));
    const __m256i lane = _mm256_load_si256(reinterpret_cast<const __m256i *>(kSpread.lane[bits]));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(w, lane), _mm256_setzero_ps(), _mm256_castsi256_ps(lane));
}

template <class V>
void single_bits(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const int bytes = m.tile / 8;
    const uint8_t *mask = m.index + slot * kRows * bytes;
    for (int r = 0; r < rows; r++, mask += bytes) {
        __m256 s[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int i = 0; i < bytes; i += 4) {
            uint32_t four;
            memcpy(&four, mask + i, 4);
            for (int u = 0; u < 4; u++) {
                const uint8_t bits = uint8_t(four >> (8 * u));
                s[u] = _mm256_fmadd_ps(spread(v, bits), _mm256_loadu_ps(x + (i + u) * 8), s[u]);
                v += __builtin_popcount(bits);
            }
        }
        const __m256 a = _mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3]));
        __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        h = _mm_add_ps(h, _mm_movehl_ps(h, h));
        out[r] += _mm_cvtss_f32(h) + _mm_cvtss_f32(_mm_movehdup_ps(h));
    }
}
#else
template <class V>
void single_bits(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const int bytes = m.tile / 8;
    const uint8_t *mask = m.index + slot * kRows * bytes;
    for (int r = 0; r < rows; r++, mask += bytes) {
        float s[4] = {};
        for (int b = 0; b < bytes; b += 8) {
            uint64_t left;
            memcpy(&left, mask + b, 8);
            for (int u = 0; left; left &= left - 1, u = (u + 1) & 3)
                s[u] += widened(*v++) * x[b * 8 + __builtin_ctzll(left)];
        }
        out[r] += (s[0] + s[1]) + (s[2] + s[3]);
    }
}
#endif

template <class V, class I>
void single_blocks_of(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    if (m.block == 4) single_blocks<V, I, Four, 4>(m, slot, rows, x, out);
    else if (m.block == 8) single_blocks<V, I, Eight, 8>(m, slot, rows, x, out);
    else single_blocks<V, I, Eight, 16>(m, slot, rows, x, out);
}

template <class V>
void single_of(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    if (m.layout == kBits) single_bits<V>(m, slot, rows, x, out);
    else if (m.layout == kBlocks && m.wide) single_blocks_of<V, uint16_t>(m, slot, rows, x, out);
    else if (m.layout == kBlocks) single_blocks_of<V, uint8_t>(m, slot, rows, x, out);
    else if (m.wide) single_lists<V, uint16_t>(m, slot, rows, x, out);
    else single_lists<V, uint8_t>(m, slot, rows, x, out);
}
