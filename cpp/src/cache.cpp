#include "cache.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "lit_sft/error.h"
#include "machine.h"

namespace lit_sft {
namespace {

// Beside the cache, for whatever a step needs.
constexpr std::size_t kSpareBytes = std::size_t{64} << 20;

}  // namespace

void Cache::resize(std::size_t rows, std::size_t capacity, const std::vector<std::size_t>& lengths) {
    const auto held = std::accumulate(lengths.begin(), lengths.end(), std::size_t{0}) * shape_.bytes_per_token();
    const auto more = bytes(rows, capacity) - std::min(bytes(rows, capacity), held);
    const auto free = available_memory();
    if (more + kSpareBytes > free)
        throw UserError("a cache of " + std::to_string(rows) + " x " + std::to_string(capacity) + " tokens takes " +
                        megabytes(more) + " more, and " + megabytes(free) +
                        " are free: shorten the prompts, or answer fewer at once");
    // Zeros that are not written take no memory yet, so that all can be asked for before the first is filled.
    std::vector<Buffer> larger;
    for (std::size_t tensor = 0; tensor < buffers_.size(); ++tensor) {
        larger.emplace_back(
            static_cast<std::byte*>(std::calloc(rows * shape_.cache[tensor].heads * capacity, token_bytes(tensor))));
        if (!larger.back()) throw UserError("a cache of " + megabytes(bytes(rows, capacity)) + " cannot be allocated");
    }
    for (std::size_t tensor = 0; tensor < buffers_.size(); ++tensor) {
        const auto heads = shape_.cache[tensor].heads;
        const auto per_token = token_bytes(tensor);
        for (std::size_t row = 0; row < std::min(rows, rows_); ++row)
            for (std::size_t head = 0; head < heads; ++head)
                std::memcpy(larger[tensor].get() + (row * heads + head) * capacity * per_token, at(tensor, row, head),
                            std::min(lengths.at(row), capacity) * per_token);
        buffers_[tensor] = std::move(larger[tensor]);
    }
    rows_ = rows;
    capacity_ = capacity;
}

void Cache::copy(std::size_t source, std::size_t target, std::size_t from, std::size_t to) {
    if (source == target || from >= to) return;
    for (std::size_t tensor = 0; tensor < buffers_.size(); ++tensor) {
        const auto per_token = token_bytes(tensor);
        for (std::size_t head = 0; head < shape_.cache[tensor].heads; ++head)
            std::memcpy(at(tensor, target, head) + from * per_token, at(tensor, source, head) + from * per_token,
                        (to - from) * per_token);
    }
}

void Cache::reorder(const std::vector<std::size_t>& rows, const std::vector<std::size_t>& parents, std::size_t from,
                    std::size_t to) {
    if (from >= to) return;
    std::vector<std::byte> before;
    for (std::size_t tensor = 0; tensor < buffers_.size(); ++tensor) {
        const auto part = (to - from) * token_bytes(tensor);
        const auto offset = from * token_bytes(tensor);
        for (std::size_t head = 0; head < shape_.cache[tensor].heads; ++head) {
            before.resize(rows.size() * part);
            for (std::size_t i = 0; i < rows.size(); ++i)
                std::memcpy(before.data() + i * part, at(tensor, rows[i], head) + offset, part);
            for (std::size_t i = 0; i < rows.size(); ++i)
                if (parents[i] != i)
                    std::memcpy(at(tensor, rows[i], head) + offset, before.data() + parents[i] * part, part);
        }
    }
}

void Cache::swap(std::size_t one, std::size_t other, std::size_t length) {
    if (one == other) return;
    for (std::size_t tensor = 0; tensor < buffers_.size(); ++tensor) {
        const auto part = length * token_bytes(tensor);
        for (std::size_t head = 0; head < shape_.cache[tensor].heads; ++head)
            std::swap_ranges(at(tensor, one, head), at(tensor, one, head) + part, at(tensor, other, head));
    }
}

std::vector<TensorView> Cache::view(std::size_t first, std::size_t count) const {
    std::vector<TensorView> views;
    for (std::size_t tensor = 0; tensor < buffers_.size(); ++tensor) {
        const auto& [name, heads, dim] = shape_.cache[tensor];
        const auto bytes = count * heads * capacity_ * token_bytes(tensor);
        const auto signed_dims =
            std::vector<std::int64_t>{static_cast<std::int64_t>(count), static_cast<std::int64_t>(heads),
                                      static_cast<std::int64_t>(capacity_), static_cast<std::int64_t>(dim)};
        views.push_back({name.c_str(), at(tensor, first, 0), bytes, signed_dims, shape_.cache_type});
    }
    return views;
}

std::size_t Cache::token_bytes(std::size_t tensor) const { return shape_.cache[tensor].dim * shape_.element_bytes(); }

std::byte* Cache::at(std::size_t tensor, std::size_t row, std::size_t head) const {
    return buffers_[tensor].get() + (row * shape_.cache[tensor].heads + head) * capacity_ * token_bytes(tensor);
}

}  // namespace lit_sft
