#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace lit_sft {

/// Bytes of a file.
///
/// @throws UserError where it is not a file, or larger than `most` bytes.
std::string read_file(const std::filesystem::path& file, std::size_t most);

/// A JSON object with its own name in errors, of which nothing is trusted.
class JsonObject {
   public:
    /// @throws UserError where the file is not a JSON object in UTF-8.
    static JsonObject read(const std::filesystem::path& file);

    JsonObject(nlohmann::json content, std::string where) : content_(std::move(content)), where_(std::move(where)) {}

    [[nodiscard]] const std::string& where() const { return where_; }
    [[nodiscard]] bool has(const char* key) const { return content_.contains(key) && !content_[key].is_null(); }
    [[nodiscard]] const nlohmann::json& at(const char* key) const;
    [[nodiscard]] std::string text(const char* key) const;
    /// From `least` to `most`.
    [[nodiscard]] std::int64_t number(const char* key, std::int64_t least, std::int64_t most) const;
    [[nodiscard]] std::vector<std::int64_t> numbers(const char* key, std::int64_t least, std::int64_t most) const;
    [[nodiscard]] std::vector<JsonObject> objects(const char* key) const;

    [[noreturn]] void refuse(const char* key, const std::string& expected) const;

   private:
    nlohmann::json content_;
    std::string where_;
};

}  // namespace lit_sft
