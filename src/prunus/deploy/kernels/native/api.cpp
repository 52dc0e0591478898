// The plain C interface, and the choice of the level.
#include <algorithm>
#include <cstring>
#include <exception>

#include "call.hpp"

namespace prunus {
namespace {

const Level *widest() {
#ifdef PRUNUS_X86
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &level_v4();
    if (v3) return &level_v3();
#endif
    return &level_baseline();
}

std::atomic<const Level *> chosen{nullptr};
std::atomic<Pool *> the_pool{nullptr};
std::atomic<Team> the_team{nullptr};

// The next call makes a pool. The old one is not freed: a call may be in it, or it is a forked child's copy.
void renew_pool(Team team) {
    the_team.store(team);
    the_pool.store(nullptr);
}

void watch_forks() {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { renew_pool(nullptr); }); });
}

int number(const Matrix &m, const uint8_t *from, int64_t i) {
    return m.wide ? reinterpret_cast<const uint16_t *>(from)[i] : from[i];
}

// How many entries a tile has by its bits or counts; -1 where these or the indices cannot be.
int64_t entries_of_bits(const Matrix &m, int64_t slot, int64_t rows, int64_t here) {
    int64_t found = 0;
    for (int64_t r = 0; r < kRows; r++) {
        const uint8_t *mask = m.index + (slot * kRows + r) * (m.tile / 8);
        for (int64_t k = 0; k < m.tile; k++)
            if (mask[k / 8] >> (k % 8) & 1) {
                if (k >= here || r >= rows) return -1;
                found++;
            }
    }
    return found;
}

int64_t entries_of_lists(const Matrix &m, int64_t slot, int64_t rows, int64_t here, int64_t entries) {
    const int R = m.layout == kBlocks ? m.block : 1;
    int64_t e = 0;
    for (int64_t g = 0; g < kRows / R; g++) {
        const int n = number(m, m.counts, slot * (kRows / R) + g);
        if ((n && g * R >= rows) || n > entries - e) return -1;
        for (int j = 0, last = -1; j < n; j++, e++) {
            const int k = number(m, m.index, m.starts[slot] + e);
            if (k <= last || k >= here) return -1;
            last = k;
        }
    }
    return e;
}

int64_t entries_of_lanes(const Matrix &m, int64_t slot, int64_t rows, int64_t here, int64_t entries) {
    const int64_t counts = slot * 2 * kRows;
    const int bytes = m.half ? 2 : 4;
    const char none[4] = {};
    uint64_t seen = 0;  // rows; those that do not exist come last
    int64_t e = 0;
    for (int i = 0, steps = 0; i < kRows; i++) {
        const int n = number(m, m.counts, counts + i), row = number(m, m.counts, counts + kRows + i);
        if (row >= kRows || seen >> row & 1 || (i < rows) != (row < rows) || (row >= rows && n)) return -1;
        seen |= uint64_t(1) << row;
        if (i % kAbreast == 0) steps = n;
        if (n > steps || steps > (entries - e) / kAbreast) return -1;
        int missing = 0;
        for (int64_t j = 0, last = -1, at = m.starts[slot] + e + i % kAbreast; j < steps; j++, at += kAbreast) {
            const int k = number(m, m.index, at);
            if (k >= here || (j < n ? k <= last : k != missing)) return -1;
            if (j >= n && std::memcmp(static_cast<const char *>(m.values) + at * bytes, none, bytes)) return -1;
            missing += j < n && k == missing;
            last = k;
        }
        if (i % kAbreast == kAbreast - 1) e += steps * kAbreast;
    }
    return e;
}

}  // namespace

const Level &level() {
    const Level *l = chosen.load(std::memory_order_relaxed);
    if (!l) chosen.store(l = widest(), std::memory_order_relaxed);
    return *l;
}

Pool &pool() {
    Pool *p = the_pool.load(std::memory_order_acquire);
    if (p) return *p;
    watch_forks();
    Pool *fresh = new Pool(the_team.load());
    if (the_pool.compare_exchange_strong(p, fresh)) return *fresh;
    delete fresh;
    return *p;
}

}  // namespace prunus

using namespace prunus;

#define PRUNUS_API extern "C" __attribute__((visibility("default")))

PRUNUS_API int prunus_version() { return 2; }

PRUNUS_API const char *prunus_level() { return level().name; }

PRUNUS_API const char *prunus_widest_level() { return widest()->name; }

// Uses a level from now on; 1 where this machine cannot run it, or it does not exist.
PRUNUS_API int prunus_use_level(const char *name) {
    const Level *best = widest();
    const Level *all[] = {&level_baseline(),
#ifdef PRUNUS_X86
                          &level_v3(), &level_v4()
#endif
    };
    for (const Level *l : all) {
        if (std::strcmp(l->name, name) == 0) {
            chosen.store(l);
            return 0;
        }
        if (l == best) break;
    }
    return 1;
}

// The threads to use from now on: those of an OpenMP runtime by its GOMP_parallel, or the library's own without one.
PRUNUS_API void prunus_use_team(Team team) {
    watch_forks();
    renew_pool(team);
}

// 0 done, 1 the table is not consistent, 2 no memory.
PRUNUS_API int prunus_check(const Matrix *m) {
    const int64_t tiles = m->tile ? (m->cols + m->tile - 1) / m->tile : 0;
    const int64_t blocks = (m->rows + kRows - 1) / kRows;
    if (m->starts[0] != 0) return 1;
    for (int64_t s = 0; s < blocks * tiles; s++) {
        const int64_t block = s / tiles, first = s % tiles * m->tile;
        const int64_t rows = std::min<int64_t>(m->rows - block * kRows, kRows);
        const int64_t here = std::min<int64_t>(m->cols - first, m->tile);
        const int64_t entries = m->starts[s + 1] - m->starts[s];
        if (entries < 0) return 1;
        const int64_t found = m->layout == kBits    ? entries_of_bits(*m, s, rows, here)
                              : m->layout == kLanes ? entries_of_lanes(*m, s, rows, here, entries)
                                                    : entries_of_lists(*m, s, rows, here, entries);
        if (found != entries) return 1;
    }
    return 0;
}

PRUNUS_API int prunus_linear(const Matrix *m, const void *x, int32_t half, int64_t tokens, const float *bias,
                             int32_t activation, void *y, int32_t threads) {
    try {
        linear(*m, x, half, tokens, {bias, activation, half}, y, threads);
    } catch (const std::exception &) {
        return 2;
    }
    return 0;
}

PRUNUS_API int prunus_conv2d(const Matrix *m, const void *x, int32_t half, const int64_t *geometry, const float *bias,
                             int32_t activation, void *y, int32_t threads) {
    Convolution c;
    static_assert(sizeof(c) == 12 * sizeof(int64_t), "twelve numbers");
    std::memcpy(&c, geometry, sizeof(c));
    try {
        convolve(*m, x, half, c, {bias, activation, half}, y, threads);
    } catch (const std::exception &) {
        return 2;
    }
    return 0;
}
