// What surrounds the product, part of level.cpp: turning, widening, bias and activation, storing.
#if defined(__AVX2__)
// Eight rows of eight become eight columns.
INLINE void transpose(__m256 r[8]) {
    __m256 t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
            u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

INLINE __m256 eight(const float *x) { return _mm256_loadu_ps(x); }
INLINE __m256 eight(const uint16_t *x) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(x))), 16));
}
#endif

template <class T>
int32_t turned(const T *x, int64_t stride, int32_t tokens, int64_t from, int64_t to, int32_t width, float *panel) {
    float bad = 0;
    int64_t k = from;
#if defined(__AVX2__)
    __m256 odd = _mm256_setzero_ps();
    for (int64_t end; k + 8 <= to; k = end) {  // a cache line of each token at a time
        end = k + 16 <= to ? k + 16 : k + 8;
        for (int32_t t = 0; t < width; t += 8)
            for (int64_t c = k; c < end; c += 8) {
                __m256 r[8];
                for (int i = 0; i < 8; i++) r[i] = t + i < tokens ? eight(x + (t + i) * stride + c) : _mm256_setzero_ps();
                for (int i = 0; i < 8; i++) odd = _mm256_fmadd_ps(r[i], _mm256_setzero_ps(), odd);
                transpose(r);
                for (int i = 0; i < 8; i++) _mm256_storeu_ps(panel + (c + i) * width + t, r[i]);
            }
    }
    for (int i = 0; i < 8; i++) bad += reinterpret_cast<const float *>(&odd)[i];
#endif
    for (; k < to; k++)
        for (int32_t t = 0; t < width; t++) {
            const float f = t < tokens ? widened(x[t * stride + k]) : 0.0f;
            bad += f * 0.0f;
            panel[k * width + t] = f;
        }
    return is_special(bad);
}

int32_t turn(const void *x, int32_t half, int64_t stride, int32_t tokens, int64_t from, int64_t to, int32_t width,
             float *panel) {
    if (half) return turned(static_cast<const uint16_t *>(x), stride, tokens, from, to, width, panel);
    return turned(static_cast<const float *>(x), stride, tokens, from, to, width, panel);
}

INLINE Vec vector_of(const float *p) { return load(p); }
INLINE Vec vector_of(const uint16_t *p) {
    Vec v;
    for (int i = 0; i < VL; i++) v[i] = widened(p[i]);
    return v;
}

typedef uint32_t Bits __attribute__((vector_size(4 * PRUNUS_LANES), aligned(4), may_alias));

// to[i] = from[i]; the sign bit of `odd` is set where one is NaN or infinite.
template <class T>
INLINE void copied_row(const T *from, int64_t count, float *to, Bits &odd) {
    int64_t i = 0;
    for (; i + VL <= count; i += VL) {
        const Vec v = vector_of(from + i);
        odd |= ((Bits)v & 0x7fffffffu) + 0x00800000u;
        save(to + i, v);
    }
    if (i < count && count >= VL) {  // the last of them, some for a second time
        const Vec v = vector_of(from + count - VL);
        odd |= ((Bits)v & 0x7fffffffu) + 0x00800000u;
        save(to + count - VL, v);
        return;
    }
    for (; i < count; i++) {
        to[i] = widened(from[i]);
        odd[0] |= (as_bits(to[i]) & 0x7fffffffu) + 0x00800000u;
    }
}

template <class T>
int32_t padded(const T *x, int64_t height, int64_t width, int64_t pad, float *to) {
    Bits odd = {};
    if (pad == 0) {
        copied_row(x, height * width, to, odd);
    } else {
        for (int64_t y = 0; y < height; y++, x += width) {
            for (int64_t i = 0; i < pad; i++) *to++ = 0;
            copied_row(x, width, to, odd);
            to += width;
        }
    }
    uint32_t any = 0;
    for (int i = 0; i < VL; i++) any |= odd[i];
    return any >> 31;
}

int32_t pad(const void *x, int32_t half, int64_t height, int64_t width, int64_t pad, float *to) {
    if (half) return padded(static_cast<const uint16_t *>(x), height, width, pad, to);
    return padded(static_cast<const float *>(x), height, width, pad, to);
}

int32_t widen(const void *from, int32_t half, int64_t count, float *to) {
    const uint16_t *h = static_cast<const uint16_t *>(from);
    const float *f = static_cast<const float *>(from);
    uint32_t most = 0;
    if (half)
        for (int64_t i = 0; i < count; i++) {
            to[i] = widened(h[i]);
            const uint32_t e = as_bits(to[i]) & 0x7f800000u;
            most = e > most ? e : most;
        }
    else
        for (int64_t i = 0; i < count; i++) {
            to[i] = f[i];
            const uint32_t e = as_bits(to[i]) & 0x7f800000u;
            most = e > most ? e : most;
        }
    return most == 0x7f800000u;
}

void narrow(const float *from, int64_t count, int32_t half, void *to) {
    if (!half) {
        memcpy(to, from, size_t(count) * 4);
        return;
    }
    uint16_t *h = static_cast<uint16_t *>(to);
    for (int64_t i = 0; i < count; i++) h[i] = rounded(from[i]);
}

INLINE void copied(const float *from, int32_t count, float *to) {
    int32_t i = 0;
    for (; i + VL <= count; i += VL) save(to + i, load(from + i));
    if (i == count) return;
    if (count >= VL) return save(to + count - VL, load(from + count - VL));
    for (; i < count; i++) to[i] = from[i];
}
INLINE void copied(const float *from, int32_t count, uint16_t *to) {
    for (int32_t i = 0; i < count; i++) to[i] = rounded(from[i]);
}

template <class T>
void placed_rows(const float *tile, int32_t wide, int32_t rows, const Run *runs, int32_t count, int64_t stride, T *y) {
    for (int32_t r = 0; r < rows; r++, tile += wide, y += stride)
        for (int32_t i = 0; i < count; i++) copied(tile + runs[i].token, runs[i].count, y + runs[i].output);
}

void place(const float *tile, int32_t wide, int32_t rows, const Run *runs, int32_t count, int32_t half, int64_t stride,
           void *y) {
    if (half) placed_rows(tile, wide, rows, runs, count, stride, static_cast<uint16_t *>(y));
    else placed_rows(tile, wide, rows, runs, count, stride, static_cast<float *>(y));
}

// x/2 (1 + erf(x / sqrt 2)). erf(z) / z as a rational function of z*z, fitted over |z| < 3.92 to 2e-8; beyond it, one.
INLINE float gelu(float x) {
    const float z = x * 0.70710678118654752f;
    const float u = z * z < 15.3664f ? z * z : 15.3664f;
    const float p = 1.128379146e+00f + u * (1.903990166e-01f + u * (5.274778092e-02f + u * (3.765312514e-03f +
                    u * (2.848781416e-04f + u * 2.050169885e-06f))));
    const float q = 1.0f + u * (5.020694772e-01f + u * (1.141060712e-01f + u * (1.496860147e-02f +
                    u * (1.162466234e-03f + u * 3.809234331e-05f))));
    float e = z * p / q;
    e = z > 3.92f ? 1.0f : e;
    e = z < -3.92f ? -1.0f : e;
    return 0.5f * x * (1.0f + e);
}

void finish(float *tile, int32_t wide, int32_t rows, int32_t width, const float *bias, int32_t activation) {
    if (!bias && activation == kNone) return;
    for (int32_t r = 0; r < rows; r++) {
        float *row = tile + r * wide;
        if (bias)
            for (int32_t i = 0; i < width; i++) row[i] += bias[r];
        if (activation == kRelu)
            for (int32_t i = 0; i < width; i++) row[i] = row[i] < 0.0f ? 0.0f : row[i];
        if (activation == kGelu)
            for (int32_t i = 0; i < width; i++) row[i] = gelu(row[i]);
    }
}

void store(const float *tile, int32_t wide, int32_t rows, int32_t tokens, int32_t half, int64_t stride, void *y) {
    int32_t first = 0;
#if defined(__AVX2__)
    for (int32_t end; !half && first + 8 <= rows; first = end) {  // a cache line of each token at a time
        end = first + 16 <= rows ? first + 16 : first + 8;
        for (int32_t t = 0; t < tokens; t += 8)
            for (int32_t c = first; c < end; c += 8) {
                __m256 r[8];
                for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(tile + (c + i) * wide + t);
                transpose(r);
                for (int i = 0; i < 8 && t + i < tokens; i++)
                    _mm256_storeu_ps(static_cast<float *>(y) + (t + i) * stride + c, r[i]);
            }
    }
#endif
    for (; first < rows; first += 8) {
        const int32_t end = first + 8 < rows ? first + 8 : rows;
        for (int32_t t = 0; t < tokens; t++)
            for (int32_t r = first; r < end; r++) {
                const float f = tile[r * wide + t];
                if (half) static_cast<uint16_t *>(y)[t * stride + r] = rounded(f);
                else static_cast<float *>(y)[t * stride + r] = f;
            }
    }
}
