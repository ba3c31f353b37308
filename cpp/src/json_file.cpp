#include "json_file.h"

#include <charconv>
#include <fstream>

#include "lit_sft/error.h"

namespace lit_sft {
namespace {

using nlohmann::json;

constexpr std::size_t kMostBytes = std::size_t{256} << 20;
constexpr std::size_t kMostShown = 60;  // characters of a value in an error
constexpr std::size_t kMostDepth = 64;  // brackets around a value

/// Whether brackets stand in more than `kMostDepth` others; those within texts do not count.
bool is_too_deep(std::string_view text) {
    std::size_t depth = 0;
    bool is_quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto character = text[i];
        if (is_quoted && character == '\\') {
            ++i;
        } else if (character == '"') {
            is_quoted = !is_quoted;
        } else if (!is_quoted && (character == '[' || character == '{')) {
            if (++depth > kMostDepth) return true;
        } else if (!is_quoted && (character == ']' || character == '}') && depth > 0) {
            --depth;
        }
    }
    return false;
}

std::string with_remedy(const std::string& text, const std::string& remedy) {
    return remedy.empty() ? text : text + "; " + remedy;
}

std::string shown(const json& value) {
    auto text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    if (text.size() > kMostShown) text = text.substr(0, kMostShown) + "...";
    return text;
}

}  // namespace

std::string read_file(const std::filesystem::path& file, std::size_t most) {
    std::error_code failed;
    if (!std::filesystem::is_regular_file(file, failed)) throw UserError(file.string() + " is not a file");
    const auto size = std::filesystem::file_size(file, failed);
    if (failed || size > most) throw UserError(file.string() + " is larger than any such file should be");
    std::ifstream stream(file, std::ios::binary);
    std::string content(static_cast<std::size_t>(size), '\0');
    if (!stream.read(content.data(), static_cast<std::streamsize>(size)))
        throw UserError(file.string() + " cannot be read");
    return content;
}

JsonObject JsonObject::read(const std::filesystem::path& file) {
    return parse(read_file(file, kMostBytes), file.string(), "export the model again");
}

JsonObject JsonObject::parse(std::string_view text, std::string where, std::string remedy) {
    if (is_too_deep(text))
        throw UserError(
            with_remedy(where + " has brackets in more than " + std::to_string(kMostDepth) + " others", remedy));
    auto parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!parsed.is_object()) throw UserError(with_remedy(where + " is not a JSON object", remedy));
    return {std::move(parsed), std::move(where), std::move(remedy)};
}

const json& JsonObject::at(const char* key) const {
    if (!content_.contains(key)) throw UserError(with_remedy(where_ + ": " + key + " is missing", remedy_));
    return content_[key];
}

void JsonObject::check_version(std::int64_t version) const {
    const auto& found = at("version");
    if (!found.is_number_integer() || found != version)
        throw UserError(where_ + " is of version " + shown(found) + ", this program reads version " +
                        std::to_string(version) + "; export the model again, or take the program of that version");
}

std::string JsonObject::text(const char* key) const {
    if (!at(key).is_string()) refuse(key, "text");
    return at(key).get<std::string>();
}

std::int64_t JsonObject::number(const char* key, std::int64_t least, std::int64_t most) const {
    const auto& value = at(key);
    const auto expected = [&] { return "a number from " + std::to_string(least) + " to " + std::to_string(most); };
    // A number above 2^63 would turn negative.
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX))
        refuse(key, expected());
    const auto number = value.get<std::int64_t>();
    if (number < least || number > most) refuse(key, expected());
    return number;
}

std::vector<std::int64_t> JsonObject::numbers(const char* key, std::int64_t least, std::int64_t most) const {
    const auto& list = at(key);
    if (!list.is_array()) refuse(key, "a list of numbers");
    std::vector<std::int64_t> found;
    for (const auto& each : list) {
        const JsonObject one({{key, each}}, where_, remedy_);
        found.push_back(one.number(key, least, most));
    }
    return found;
}

std::vector<std::string> JsonObject::texts(const char* key) const {
    const auto& list = at(key);
    std::vector<std::string> found;
    if (!list.is_array()) refuse(key, "a list of texts");
    for (const auto& each : list) {
        if (!each.is_string()) refuse(key, "a list of texts");
        found.push_back(each.get<std::string>());
    }
    return found;
}

std::map<std::int64_t, std::string> JsonObject::texts_by_id(const char* key) const {
    std::map<std::int64_t, std::string> found;
    if (!at(key).is_object()) refuse(key, "texts by ids");
    for (const auto& [name, value] : at(key).items()) {
        std::int64_t id = 0;
        const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
        if (error != std::errc() || end != name.data() + name.size() || !value.is_string()) refuse(key, "texts by ids");
        found[id] = value.get<std::string>();
    }
    return found;
}

bool JsonObject::flag(const char* key) const {
    if (!at(key).is_boolean()) refuse(key, "true or false");
    return at(key).get<bool>();
}

JsonObject JsonObject::object(const char* key) const {
    if (!at(key).is_object()) refuse(key, "an object");
    return {at(key), where_ + ": " + key, remedy_};
}

std::vector<JsonObject> JsonObject::objects(const char* key) const {
    const auto& list = at(key);
    if (!list.is_array()) refuse(key, "a list of objects");
    std::vector<JsonObject> found;
    for (const auto& each : list) {
        if (!each.is_object()) refuse(key, "a list of objects");
        found.emplace_back(each, where_ + ": " + key, remedy_);
    }
    return found;
}

void JsonObject::refuse(const char* key, const std::string& expected) const {
    throw UserError(with_remedy(where_ + ": " + key + " is " + shown(at(key)) + "; expected " + expected, remedy_));
}

}  // namespace lit_sft
