// y[tokens, rows] = x[tokens, cols] times the matrix: inputs are turned into panels, row blocks times panels are tasks.
#include <cstring>
#include <vector>

#include "call.hpp"

namespace prunus {
namespace {

static_assert(kRows <= kWidest, "a row block's sums are one row of a tile");
constexpr int kTogether = 2;                 // panels that a tile meets while it is in the cache
constexpr int64_t kTallest = 32;             // row blocks of weights in blocks: their panels are fetched ahead, sums in order
constexpr int64_t kMostPacked = 4 << 20;     // floats of panels at a time
constexpr int64_t kTurned = 512;             // columns of a panel that a task packs
constexpr int64_t kKept = 16 << 20;          // floats that a thread keeps for its next call

thread_local Scratch packed_memory, tile_memory;

void one(const Level &l, const Matrix &m, const void *x, int32_t half, const Epilogue &e, void *y, int threads) {
    const int64_t padded = (m.cols + m.tile - 1) / m.tile * m.tile;
    float *in = packed_memory.floats(padded + 64);
    const int32_t special = l.widen(x, half, m.cols, in);
    std::memset(in + m.cols, 0, size_t(padded + 64 - m.cols) * sizeof(float));
    each(threads, (m.rows + kRows - 1) / kRows, [&](int64_t block) {
        float sums[kWidest];  // one row of a tile, to finish()
        const int rows = int(m.rows - block * kRows < kRows ? m.rows - block * kRows : kRows);
        l.single(m, block, in, special, sums);
        for (int r = 0; e.bias && r < rows; r++) sums[r] += e.bias[block * kRows + r];
        l.finish(sums, kWidest, 1, rows, nullptr, e.activation);
        l.narrow(sums, rows, e.half, static_cast<char *>(y) + block * kRows * (e.half ? 2 : 4));
    });
}

}  // namespace

void linear(const Matrix &m, const void *x, int32_t half, int64_t tokens, const Epilogue &e, void *y, int threads) {
    const Level &l = level();
    if (tokens == 0 || m.rows == 0) return;
    if (tokens == 1) {
        one(l, m, x, half, e, y, threads);
        packed_memory.trim(kKept);
        return;
    }
    std::vector<Panel> panels;
    std::vector<int64_t> first;
    const int64_t blocks = (m.rows + kRows - 1) / kRows;
    const int32_t wide = widest_of(l, m), together = kTogether * l.widest / wide;
    for (int64_t t = 0; t < tokens;) {
        const int32_t width = width_of(l, wide, tokens - t);
        panels.push_back({nullptr, nullptr, width, 0});
        first.push_back(t);
        t += width;
    }
    int64_t at_once = kMostPacked / (m.cols * wide + 1);
    at_once = at_once < together ? together : at_once;
    const int64_t slices = m.cols ? (m.cols + kTurned - 1) / kTurned : 0;
    for (size_t from = 0; from < panels.size(); from += size_t(at_once)) {
        const int64_t count = std::min<int64_t>(at_once, int64_t(panels.size() - from));
        Panel *here = panels.data() + from;
        int64_t size = 0;
        for (int64_t i = 0; i < count; i++) size += m.cols * here[i].width;
        float *memory = packed_memory.floats(size);
        for (int64_t i = 0; i < count; i++) here[i].data = memory, memory += m.cols * here[i].width;
        std::vector<std::atomic<int32_t>> special(static_cast<size_t>(count));
        each(threads, count * slices, [&](int64_t task) {
            const int64_t i = task / slices, k = task % slices * kTurned, t = first[from + i];
            const int64_t there = std::min<int64_t>(here[i].width, tokens - t);
            const char *source = static_cast<const char *>(x) + t * m.cols * (half ? 2 : 4);
            const int32_t odd = l.turn(source, half, m.cols, int32_t(there), k, std::min(m.cols, k + kTurned),
                                       here[i].width, const_cast<float *>(here[i].data));
            if (odd) special[i].store(1, std::memory_order_relaxed);
        });
        for (int64_t i = 0; i < count; i++) here[i].special = special[i];
        const int64_t groups = (count + together - 1) / together, most = m.layout == kBlocks ? kTallest : kTall;
        const int64_t tall = blocks_together(most, blocks, groups, threads), stacks = (blocks + tall - 1) / tall;
        each(threads, stacks * groups, [&](int64_t task) {
            const int64_t block = task % stacks * tall, end = std::min(blocks, block + tall);
            const int64_t group = task / stacks * together;
            const int32_t n = int32_t(std::min<int64_t>(together, count - group));
            float *tile = tile_memory.floats(together * tall * kRows * wide);
            l.multiply(m, block, end, here + group, n, tile);
            for (int32_t i = 0; i < n; i++)
                for (int64_t b = block; b < end; b++, tile += kRows * wide) {
                    const int64_t t = first[from + group + i];
                    const int64_t there = std::min<int64_t>(here[group + i].width, tokens - t);
                    const int rows = int(std::min<int64_t>(kRows, m.rows - b * kRows));
                    l.finish(tile, wide, rows, here[group + i].width, e.bias ? e.bias + b * kRows : nullptr, e.activation);
                    char *to = static_cast<char *>(y) + (t * m.rows + b * kRows) * (e.half ? 2 : 4);
                    l.store(tile, wide, rows, int32_t(there), e.half, m.rows, to);
                }
        });
    }
    packed_memory.trim(kKept);
}

}  // namespace prunus
