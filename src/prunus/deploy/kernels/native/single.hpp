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

#if defined(__AVX2__)
// Memory far behind what is read is asked for early: the processor's own prefetching stops at the end of each page.
INLINE void ahead(const void *p, int by = 2048) { _mm_prefetch(static_cast<const char *>(p) + by, _MM_HINT_T0); }

INLINE float total(__m256 a) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(h) + _mm_cvtss_f32(_mm_movehdup_ps(h));
}

// Four inputs by four indices, which lie in one word. Faster than a gather instruction on all but the newest processors.
// Written so that each input is inserted by the instruction that loads it.
INLINE __m128 four_of(const float *x, const uint16_t *index) {
    uint64_t w;
    memcpy(&w, index, 8);
    __m128 a = _mm_load_ss(x + uint16_t(w));
    a[1] = x[_bextr_u64(w, 16, 16)];
    a[2] = x[_bextr_u64(w, 32, 16)];
    a[3] = x[w >> 48];
    return a;
}
INLINE __m128 four_of(const float *x, const uint8_t *index) {
    uint32_t w;
    memcpy(&w, index, 4);
    __m128 a = _mm_load_ss(x + uint8_t(w));
    a[1] = x[uint8_t(w >> 8)];
    a[2] = x[uint8_t(w >> 16)];
    a[3] = x[w >> 24];
    return a;
}
template <class I>
INLINE __m256 eight_of(const float *x, const I *index) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(four_of(x, index)), four_of(x, index + 4), 1);
}

alignas(64) const int32_t kLast[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};

template <class V, class I>
INLINE float list_times(const V *v, const I *index, int n, const float *x) {
    if (n < 8) {
        float sum = 0;
        for (int j = 0; j < n; j++) sum += widened(v[j]) * x[index[j]];
        return sum;
    }
    __m256 s[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    int j = 0;
    for (; j + 16 <= n; j += 16) {
        ahead(v + j);
        ahead(index + j);
        s[0] = _mm256_fmadd_ps(eight_of(x, index + j), (__m256)wide(v + j, static_cast<Eight *>(nullptr)), s[0]);
        s[1] = _mm256_fmadd_ps(eight_of(x, index + j + 8), (__m256)wide(v + j + 8, static_cast<Eight *>(nullptr)), s[1]);
    }
    if (j + 8 <= n) {
        s[0] = _mm256_fmadd_ps(eight_of(x, index + j), (__m256)wide(v + j, static_cast<Eight *>(nullptr)), s[0]);
        j += 8;
    }
    // The last eight once more, without those that were taken.
    const __m256 rest = _mm256_loadu_ps(reinterpret_cast<const float *>(kLast + (n - j)));
    const __m256 w = _mm256_and_ps((__m256)wide(v + n - 8, static_cast<Eight *>(nullptr)), rest);
    s[1] = _mm256_fmadd_ps(_mm256_and_ps(eight_of(x, index + n - 8), rest), w, s[1]);
    return total(_mm256_add_ps(s[0], s[1]));
}
#else
template <class V, class I>
INLINE float list_times(const V *v, const I *index, int n, const float *x) {
    float s[4] = {};
    int j = 0;
    for (; j + 4 <= n; j += 4)
        for (int u = 0; u < 4; u++) s[u] += widened(v[j + u]) * x[index[j + u]];
    for (; j < n; j++) s[0] += widened(v[j]) * x[index[j]];
    return (s[0] + s[1]) + (s[2] + s[3]);
}
#endif

template <class V, class I>
void single_lists(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const I *index = reinterpret_cast<const I *>(m.index) + m.starts[slot];
    const I *counts = reinterpret_cast<const I *>(m.counts) + slot * kRows;
    for (int r = 0; r < rows; r++) {
        const int n = counts[r];
        out[r] += list_times(v, index, n, x);
        v += n;
        index += n;
    }
}

// Eight rows side by side: no sums across a register, and one end of a loop for the eight.
template <class V, class I>
struct Abreast {
    const V *v;
    const I *index;
#if defined(__AVX2__)
    __m256 sum = _mm256_setzero_ps();
    INLINE void early() const { ahead(v, 1024), ahead(index, 512); }
    INLINE void take(const float *x) {
        sum = _mm256_fmadd_ps(eight_of(x, index), (__m256)wide(v, static_cast<Eight *>(nullptr)), sum);
        v += kAbreast, index += kAbreast;
    }
    INLINE void give(const I *order, float *out) {
        for (int l = 0; l < kAbreast; l++) out[order[l]] += sum[l];
        sum = _mm256_setzero_ps();
    }
#else
    float sum[kAbreast] = {};
    INLINE void early() const {}
    INLINE void take(const float *x) {
        for (int l = 0; l < kAbreast; l++) sum[l] += widened(v[l]) * x[index[l]];
        v += kAbreast, index += kAbreast;
    }
    INLINE void give(const I *order, float *out) {
        for (int l = 0; l < kAbreast; l++) out[order[l]] += sum[l], sum[l] = 0;
    }
#endif
};

// The halves of a tile at the same time: memory gives more when it is read in several places.
template <class V, class I>
void single_lanes(const Matrix &m, int64_t slot, const float *x, float *out) {
    const I *counts = reinterpret_cast<const I *>(m.counts) + slot * 2 * kRows, *order = counts + kRows;
    Abreast<V, I> a{static_cast<const V *>(m.values) + m.starts[slot],
                    reinterpret_cast<const I *>(m.index) + m.starts[slot]};
    Abreast<V, I> b = a;
    for (int g = 0; g < kRows / 2; g += kAbreast) b.v += counts[g] * kAbreast, b.index += counts[g] * kAbreast;
    for (int g = 0; g < kRows / 2; g += kAbreast) {
        const int p = counts[g], q = counts[g + kRows / 2], both = p < q ? p : q;
        int j = 0;
        for (; j + 2 <= both; j += 2) {
            a.early(), b.early();
            a.take(x), b.take(x);
            a.take(x), b.take(x);
        }
        for (int i = j; i < p; i++) a.take(x);
        for (int i = j; i < q; i++) b.take(x);
        a.give(order + g, out);
        b.give(order + g + kRows / 2, out);
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
// For each byte: which of the next values each lane takes, with the sign bit set; no sign where it takes none.
struct Spread {
    uint64_t lanes[256];
    constexpr Spread() : lanes() {
        for (int m = 0; m < 256; m++)
            for (int i = 0, n = 0; i < 8; i++)
                if (m >> i & 1) lanes[m] |= uint64_t(0x80 | n++) << (8 * i);
    }
};
alignas(64) constexpr Spread kSpread;

// One row of a tile, exactly: what the loop below cannot tell where values are not finite.
template <class V>
__attribute__((noinline)) float bits_row(const V *v, const uint8_t *mask, int bytes, const float *x) {
    float s = 0;
    for (int b = 0; b < bytes; b += 8) {
        uint64_t left;
        memcpy(&left, mask + b, 8);
        for (; left; left &= left - 1) s += widened(*v++) * x[b * 8 + __builtin_ctzll(left)];
    }
    return s;
}

template <class V>
void single_bits(const Matrix &m, int64_t slot, int rows, const float *x, float *out) {
    const V *v = static_cast<const V *>(m.values) + m.starts[slot];
    const int bytes = m.tile / 8;
    const uint8_t *mask = m.index + slot * kRows * bytes;
    for (int r = 0; r < rows; r++, mask += bytes) {
        const V *first = v;
        __m256 s[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int i = 0; i < bytes; i += 4) {
            uint32_t four;
            memcpy(&four, mask + i, 4);
            ahead(v);
            for (int u = 0; u < 4; u++) {
                const uint8_t bits = uint8_t(four >> (8 * u));
                const __m256i lanes =
                    _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(kSpread.lanes + bits)));
                const __m256 w = _mm256_permutevar8x32_ps((__m256)wide(v, static_cast<Eight *>(nullptr)), lanes);
                s[u] = _mm256_fmadd_ps(w, _mm256_maskload_ps(x + (i + u) * 8, lanes), s[u]);
                v += __builtin_popcount(bits);
            }
        }
        // A lane without a value holds another one times zero, which is not zero if that is NaN or infinite.
        const float sum = total(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
        out[r] += is_special(sum) ? bits_row(first, mask, bytes, x) : sum;
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
    else if (m.layout == kLanes && m.wide) single_lanes<V, uint16_t>(m, slot, x, out);
    else if (m.layout == kLanes) single_lanes<V, uint8_t>(m, slot, x, out);
    else if (m.wide) single_lists<V, uint16_t>(m, slot, rows, x, out);
    else single_lists<V, uint8_t>(m, slot, rows, x, out);
}
