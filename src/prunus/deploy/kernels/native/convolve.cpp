// Convolutions as products: a panel is what some output positions see of the padded input, of which a band at a time is
// laid out where it stays in the second cache.
#include <cstring>

#include "call.hpp"

namespace prunus {
namespace {

constexpr int kTogether = 4;              // panels that a tile meets while it is in the cache
constexpr int64_t kBand = 48 << 10;       // floats of a band, about
constexpr int64_t kLeastRows = 4;         // of a band's output: less would copy the same rows too often
constexpr int64_t kLine = 16;             // floats of a cache line
constexpr int64_t kMostPacked = 1 << 18;  // floats of gathered panels at a time
constexpr double kGather = 15;            // products that cost as much as gathering an input
constexpr int64_t kKept = 16 << 20;

thread_local Scratch band_memory, panel_memory, sum_memory;

// Output rows of one image, or all rows of several.
struct Band {
    int64_t image, images, row, rows;
};

struct Plan {
    Convolution c;
    int64_t oh, ow, width;           // of the output; from row to row of a band
    int64_t rows, images;            // of the largest band, in its output
    int64_t plane, all;              // floats from channel to channel of a band, and from image to image
    int64_t per_image, count;        // bands
    bool flat;
    std::vector<int32_t> table;      // where column k lies in an image of a band

    int64_t rows_of(int64_t out) const { return (out - 1) * c.stride_h + (c.kernel_h - 1) * c.dilation_h + 1; }
    Band band(int64_t i) const {
        if (per_image == 1) return {i * images, std::min(images, c.images - i * images), 0, oh};
        const int64_t row = i % per_image * rows;
        return {i / per_image, 1, row, std::min(rows, oh - row)};
    }
    // Tokens of a band's image. Flat ones are positions of the padded rows, also where these have no output any more:
    // neighbours are then neighbours in memory for every column, and the band itself is all panels.
    int64_t tokens(const Band &b) const { return flat ? (b.rows - 1) * width + ow : b.images * b.rows * ow; }
};

// `products` are those of an input on average. False where columns lie too far apart to be counted.
bool planned(Plan &p, const Convolution &c, double products, int threads) {
    p.c = c;
    p.oh = c.out_h();
    p.ow = c.out_w();
    p.width = c.width + c.pad_w;  // the zeros right of a row are those left of the next
    p.flat = c.stride_h == 1 && c.stride_w == 1 && p.ow <= p.width &&  // not where zeros alone are seen between rows
             double(p.width - p.ow) * products <= kGather * double(p.ow);
    const int64_t fit = kBand / std::max<int64_t>(c.channels * p.width, 1), whole = p.rows_of(p.oh);  // rows
    p.images = p.flat ? 1 : std::max<int64_t>(std::min(fit / whole, c.images / threads), 1);
    p.rows = p.oh;
    if (p.images == 1) {
        const int64_t most = std::max((fit - p.rows_of(1)) / c.stride_h + 1, std::min(p.oh, kLeastRows));
        int64_t bands = (p.oh + most - 1) / most;
        if (bands > 1) bands = std::min((bands + threads - 1) / threads * threads, p.oh);
        p.rows = (p.oh + bands - 1) / bands;
    }
    p.per_image = (p.oh + p.rows - 1) / p.rows;
    p.count = p.per_image == 1 ? (c.images + p.images - 1) / p.images : c.images * p.per_image;
    // An odd number of lines: channels that lie a power of two apart would meet in the same few places of the cache.
    const int64_t lines = (p.rows_of(p.rows) * p.width + c.pad_w + kLine - 1) / kLine;
    p.plane = (lines | 1) * kLine;
    p.all = p.plane * c.channels;
    if (p.all > INT32_MAX) return false;
    p.table.reserve(size_t(c.channels * c.kernel_h * c.kernel_w));
    for (int64_t i = 0; i < c.channels; i++)
        for (int64_t y = 0; y < c.kernel_h; y++)
            for (int64_t x = 0; x < c.kernel_w; x++)
                p.table.push_back(int32_t(i * p.plane + y * c.dilation_h * p.width + x * c.dilation_w));
    return true;
}

// A channel of a band with zeros around it. Whether it holds NaN or infinity.
int32_t lay(const Plan &p, const Level &l, const Band &b, const void *x, int32_t half, int64_t channel, float *band) {
    const Convolution &c = p.c;
    const int64_t size = half ? 2 : 4, first = b.row * c.stride_h - c.pad_h, rows = p.rows_of(b.rows);
    int32_t odd = 0;
    for (int64_t i = 0; i < b.images; i++) {
        float *to = band + i * p.all + channel * p.plane;
        const int64_t planes = (b.image + i) * c.channels + channel;
        const char *from = static_cast<const char *>(x) + planes * c.height * c.width * size;
        const int64_t begin = std::max<int64_t>(first, 0), end = std::min(first + rows, c.height);
        if (begin >= end) {
            std::memset(to, 0, size_t(p.plane) * sizeof(float));
            continue;
        }
        std::memset(to, 0, size_t((begin - first) * p.width) * sizeof(float));
        to += (begin - first) * p.width;
        odd |= l.pad(from + begin * c.width * size, half, end - begin, c.width, c.pad_w, to);
        std::memset(to + (end - begin) * p.width, 0, size_t(p.plane - (end - first) * p.width) * sizeof(float));
    }
    return odd;
}

// Where `count` tokens of a band from `token` on are in the output, and (gathered) in the band; how many runs.
int32_t runs_of(const Plan &p, const Band &b, int64_t token, int64_t count, int64_t out_rows, Run *runs) {
    const int64_t line = p.flat ? p.width : p.ow;
    int32_t n = 0;
    for (int64_t t = 0; t < count;) {
        const int64_t row = (token + t) / line, x = (token + t) % line;
        const int64_t here = std::min(count - t, line - x), good = std::min(here, p.ow - x);
        const int64_t image = b.image + row / b.rows, y = b.row + row % b.rows;
        const int64_t output = (image * out_rows * p.oh + y) * p.ow + x;
        // Rows that follow each other in the output are one run.
        if (n && runs[n - 1].token + runs[n - 1].count == t && runs[n - 1].output + runs[n - 1].count == output)
            runs[n - 1].count += int32_t(good);
        else if (good > 0)
            runs[n++] = {int32_t(t), int32_t(good), output};
        t += here;
    }
    return n;
}

struct Piece {
    int32_t token, count;
    int64_t source;
};

// Columns of a panel, from what its tokens see.
void gather(const Plan &p, const Band &b, int64_t token, int32_t width, const float *band, float *panel) {
    Piece pieces[kWidest];
    int32_t n = 0;
    const int64_t left = std::min<int64_t>(width, p.tokens(b) - token);
    for (int64_t t = 0; t < left; t++) {
        const int64_t row = (token + t) / p.ow, x = (token + t) % p.ow;
        const int64_t from = row / b.rows * p.all + row % b.rows * p.c.stride_h * p.width + x * p.c.stride_w;
        if (n && pieces[n - 1].source + pieces[n - 1].count == from) pieces[n - 1].count++;
        else pieces[n++] = {int32_t(t), 1, from};
    }
    const bool single = n == left;
    const size_t columns = p.table.size();
    for (size_t k = 0; k < columns; k++, panel += width) {
        const float *from = band + p.table[k];
        if (single || k + 1 == columns) {
            for (int32_t i = 0; i < n; i++)
                for (int32_t t = 0; t < pieces[i].count; t++) panel[pieces[i].token + t] = from[pieces[i].source + t];
        } else {
            // By eights: what is too much is written over by the next piece, or by the next column.
            for (int32_t i = 0; i < n; i++)
                for (int32_t t = 0; t < pieces[i].count; t += 8)
                    std::memcpy(panel + pieces[i].token + t, from + pieces[i].source + t, 8 * sizeof(float));
        }
        for (int64_t t = left; t < width; t++) panel[t] = 0;
    }
}

struct Place {
    int64_t band, token;
    int32_t width;
};

// What all bands of a call share.
struct Call {
    const Level &l;
    const Matrix &m;
    const void *x;
    int32_t half;
    const Epilogue &e;
    void *y;
    const Plan &p;
};

// The bands from `from` to `to`, by several threads that wait for each other between the steps.
void convolve_bands(const Call &call, int64_t from, int64_t to, int threads) {
    const Level &l = call.l;
    const Matrix &m = call.m;
    const Plan &p = call.p;
    const int64_t here = to - from, blocks = (m.rows + kRows - 1) / kRows, out_plane = p.oh * p.ow;
    const int64_t columns = int64_t(p.table.size()), channels = p.c.channels;
    const int32_t wide = widest_of(l, m), size = call.e.half ? 2 : 4;
    const int64_t band_size = p.images * p.all + kWidest;  // a panel may read on behind the last plane
    float *memory = band_memory.floats(here * band_size);
    std::atomic<int32_t> special{0};
    each(threads, here * channels, [&](int64_t task) {
        const int64_t i = task / channels, channel = task % channels;
        float *band = memory + i * band_size;
        if (lay(p, l, p.band(from + i), call.x, call.half, channel, band)) special.store(1, std::memory_order_relaxed);
        if (channel == 0) std::memset(band + p.images * p.all, 0, kWidest * sizeof(float));
    });
    std::vector<Place> places;
    for (int64_t i = 0; i < here; i++) {
        const int64_t tokens = p.tokens(p.band(from + i));
        for (int64_t t = 0; t < tokens; t += places.back().width)
            places.push_back({i, t, width_of(l, wide, tokens - t)});
    }
    const int64_t total = int64_t(places.size());
    const int64_t fit = std::max<int64_t>(kMostPacked / (columns * wide + 1), threads * kTogether);
    const int64_t most = p.flat ? total : fit;
    std::vector<Panel> panels;
    for (int64_t start = 0; start < total; start += most) {
        const int64_t count = std::min(most, total - start);
        const Place *at = places.data() + start;
        panels.resize(size_t(count));
        float *packed = p.flat ? nullptr : panel_memory.floats(count * columns * wide + 8);
        for (int64_t i = 0; i < count; i++) {
            const float *band = memory + at[i].band * band_size;
            if (p.flat) panels[i] = {band + at[i].token, p.table.data(), at[i].width, special};
            else panels[i] = {packed + i * columns * wide, nullptr, at[i].width, special};
        }
        if (!p.flat)
            each(threads, count, [&](int64_t i) {
                gather(p, p.band(from + at[i].band), at[i].token, at[i].width, memory + at[i].band * band_size,
                       packed + i * columns * wide);
            });
        const int64_t groups = (count + kTogether - 1) / kTogether;
        const int64_t tall = blocks_together(kTall, blocks, groups, threads), stacks = (blocks + tall - 1) / tall;
        each(threads, stacks * groups, [&](int64_t task) {
            const int64_t block = task % stacks * tall, end = std::min(blocks, block + tall);
            const int64_t group = task / stacks * kTogether;
            const int32_t n = int32_t(std::min<int64_t>(kTogether, count - group));
            float *tile = sum_memory.floats(kTogether * tall * kRows * wide);
            l.multiply(m, block, end, panels.data() + group, n, tile);
            for (int32_t i = 0; i < n; i++) {
                const Place &one = at[group + i];
                const Band band = p.band(from + one.band);
                Run runs[kWidest];
                const int64_t left = std::min<int64_t>(one.width, p.tokens(band) - one.token);
                const int32_t found = runs_of(p, band, one.token, left, m.rows, runs);
                for (int64_t b = block; b < end; b++, tile += kRows * wide) {
                    const int rows = int(std::min<int64_t>(kRows, m.rows - b * kRows));
                    const float *bias = call.e.bias ? call.e.bias + b * kRows : nullptr;
                    l.finish(tile, wide, rows, one.width, bias, call.e.activation);
                    l.place(tile, wide, rows, runs, found, call.e.half, out_plane,
                            static_cast<char *>(call.y) + b * kRows * out_plane * size);
                }
            }
        });
    }
    band_memory.trim(kKept);
    panel_memory.trim(kKept);
}

}  // namespace

void convolve(const Matrix &m, const void *x, int32_t half, const Convolution &c, const Epilogue &e, void *y,
              int threads) {
    const Level &l = level();
    if (c.images == 0 || m.rows == 0 || c.out_h() <= 0 || c.out_w() <= 0) return;
    const int64_t blocks = (m.rows + kRows - 1) / kRows, tiles = (m.cols + m.tile - 1) / m.tile;
    const double values = double(m.starts[blocks * tiles]) * (m.layout == kBlocks ? m.block : 1);
    Plan p;
    if (!planned(p, c, values / double(m.cols), threads)) throw std::bad_alloc();
    const Call call{l, m, x, half, e, y, p};
    // A band for each thread: they need not wait for each other.
    if (p.count >= threads)
        each(threads, p.count, [&](int64_t i) { convolve_bands(call, i, i + 1, 1); });
    else
        convolve_bands(call, 0, p.count, threads);
}

}  // namespace prunus
