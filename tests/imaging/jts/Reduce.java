import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import org.locationtech.jts.geom.Geometry;
import org.locationtech.jts.geom.PrecisionModel;
import org.locationtech.jts.io.WKTReader;
import org.locationtech.jts.precision.GeometryPrecisionReducer;

/** Puts each polygon (WKT, one a line) through what QuPath does on import; prints type and area. */
class Reduce {
    public static void main(String[] arguments) throws Exception {
        var reader = new WKTReader();
        var reducer = new GeometryPrecisionReducer(new PrecisionModel(100.0));
        var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                Geometry reduced = reducer.reduce(reader.read(line));
                System.out.println(reduced.getGeometryType() + " " + reduced.getArea());
            } catch (IllegalArgumentException refused) {
                System.out.println("refused " + refused.getMessage());
            }
        }
    }
}
