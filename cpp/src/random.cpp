#include "random.h"

#include <algorithm>
#include <string>
#include <vector>

#include "sha512.h"

namespace lit_sft {
namespace {

/// The words of a number whose bytes are the text and its digest, the lowest word first.
std::vector<std::uint32_t> key_of(std::string_view text) {
    const auto digest = sha512(text);
    std::string bytes(text);
    bytes.append(digest.begin(), digest.end());
    bytes.erase(0, bytes.find_first_not_of('\0'));  // leading zeros of a number are none of its words
    std::vector<std::uint32_t> words((bytes.size() + 3) / 4);
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        const auto byte = static_cast<std::uint8_t>(bytes[bytes.size() - 1 - i]);
        words[i / 4] |= static_cast<std::uint32_t>(byte) << (8 * (i % 4));
    }
    return words;
}

}  // namespace

// `init_by_array` of the authors of the generator.
Random::Random(std::string_view seed) {
    seed_by_number(19650218U);
    const auto key = key_of(seed);
    const auto mixed = [this](std::size_t i, std::uint32_t factor) {
        return state_[i] ^ ((state_[i - 1] ^ state_[i - 1] >> 30) * factor);
    };
    std::size_t i = 1;
    std::size_t j = 0;
    const auto forward = [&] {
        if (++i == kWords) {
            state_[0] = state_[kWords - 1];
            i = 1;
        }
    };
    for (auto left = std::max(kWords, key.size()); left > 0; --left) {
        state_[i] = mixed(i, 1664525U) + key[j] + static_cast<std::uint32_t>(j);
        forward();
        if (++j == key.size()) j = 0;
    }
    for (auto left = kWords - 1; left > 0; --left) {
        state_[i] = mixed(i, 1566083941U) - static_cast<std::uint32_t>(i);
        forward();
    }
    state_[0] = 0x80000000U;
}

double Random::random() {
    const auto high = next() >> 5;  // 27 bits
    const auto low = next() >> 6;   // 26 bits
    return (high * 67108864.0 + low) / 9007199254740992.0;
}

void Random::seed_by_number(std::uint32_t number) {
    state_[0] = number;
    for (std::size_t i = 1; i < kWords; ++i)
        state_[i] = 1812433253U * (state_[i - 1] ^ state_[i - 1] >> 30) + static_cast<std::uint32_t>(i);
}

std::uint32_t Random::next() {
    if (at_ == kWords) refill();
    auto word = state_[at_++];
    word ^= word >> 11;
    word ^= word << 7 & 0x9d2c5680U;
    word ^= word << 15 & 0xefc60000U;
    return word ^ word >> 18;
}

void Random::refill() {
    for (std::size_t i = 0; i < kWords; ++i) {
        const auto word = (state_[i] & 0x80000000U) | (state_[(i + 1) % kWords] & 0x7fffffffU);
        state_[i] = state_[(i + 397) % kWords] ^ word >> 1 ^ (word & 1 ? 0x9908b0dfU : 0U);
    }
    at_ = 0;
}

}  // namespace lit_sft
